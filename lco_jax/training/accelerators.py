"""Published figures of TPU chips, and topologies to compile for."""

import importlib.util
import math
import os
from typing import NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
  """Figures of a chip.

  Attributes:
    memory: bytes.
    flops: products and sums of bfloat16 in a second.
    link_bandwidth: bytes in a second that all its links send.
    type_prefix: of the accelerator types of its topologies.
    cores: that its accelerator types count a chip as.
  """

  memory: float
  flops: float
  link_bandwidth: float
  type_prefix: str
  cores: int


# By the name that begins a topology.
# Source: cloud.google.com/tpu/docs/system-architecture-tpu-vm.
CHIPS = {
  "v4": Chip(32 * 2**30, 275e12, 300e9, "v4", 2),
  "v5e": Chip(16 * 2**30, 197e12, 200e9, "v5litepod", 1),
  "v5p": Chip(95 * 2**30, 459e12, 600e9, "v5p", 2),
  "v6e": Chip(32 * 2**30, 918e12, 448e9, "v6e", 1),
}

# Chips by a part of the kind that JAX names; the first that fits counts.
_KINDS = {
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU v5": "v5p",
  "TPU v4": "v4",
}
# FLOPs of bfloat16 in a second, dense, likewise.
# Source: the makers' data sheets.
_PEAK_FLOPS = {
  **{part: CHIPS[name].flops for part, name in _KINDS.items()},
  "H200": 989e12,
  "H100 PCIe": 756e12,
  "H100 NVL": 835e12,
  "H100": 989e12,
  "A100": 312e12,
}


def find_peak_flops(kind: str) -> float | None:
  """Finds the published FLOPs in a second of a device; None if unknown.

  Args:
    kind: of the device, as JAX names it.
  """
  return next((own for part, own in _PEAK_FLOPS.items() if part in kind), None)


def find_memory(device: jax.Device) -> float | None:
  """Finds the bytes that a device's memory has; None if unknown."""
  for part, name in _KINDS.items():
    if part in device.device_kind:
      return CHIPS[name].memory
  used = device.memory_stats() if device.platform == "gpu" else None
  return used["bytes_limit"] if used else None


def describe_topology(name: str) -> tuple[Chip, list[jax.Device]]:
  """Describes the chips of a topology, of which none need be there.

  Args:
    name: such as v5e:8x8.

  Raises:
    ValueError: if libtpu does not know it, or is not installed.
  """
  kind, _, layout = name.partition(":")
  if kind not in CHIPS:
    raise ValueError(
      f"--topology: unknown chip {kind!r} in {name!r}; known:"
      f" {', '.join(CHIPS)}"
    )
  chip, sizes = CHIPS[kind], layout.split("x")
  if not all(size.isdecimal() and int(size) > 0 for size in sizes):
    raise ValueError(f"--topology: want such as v5e:8x8, got {name!r}")
  count = math.prod(map(int, sizes))
  # libtpu would ask the machine's metadata server where it is.
  os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE=f"{chip.type_prefix}-{count * chip.cores}",
  )
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except RuntimeError as error:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    if importlib.util.find_spec("libtpu") is None:
      line = "needs libtpu: pip install 'jax[tpu]'"
    raise ValueError(f"--topology {name}: {line}") from None
  return chip, list(found.devices)
