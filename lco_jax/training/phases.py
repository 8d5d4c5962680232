"""Seconds of an update's phases, and how well they use the devices."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lco_jax.training import accelerators, program_cost

GENERATION, SCORING, ACTING, UPDATE = (
  "generation",
  "scoring",
  "acting",
  "update",
)
# All metrics made here: they differ between runs of one configuration.
METRICS = (
  *(f"{phase}_seconds" for phase in (GENERATION, SCORING, ACTING, UPDATE)),
  *(f"{phase}_tokens_per_second" for phase in (GENERATION, UPDATE)),
  *(f"{phase}_flops_utilisation" for phase in (GENERATION, UPDATE)),
)


class Phases:
  """Seconds and FLOPs of the phases of the update under way."""

  def __init__(self):
    """Begins with none."""
    self._seconds: dict[str, float] = {}
    self._flops: dict[str, float] = {}

  @contextlib.contextmanager
  def measure(self, phase: str) -> Iterator[None]:
    """Measures a `with` block, and adds its seconds to those of a phase."""
    began = time.perf_counter()
    yield
    self._seconds[phase] = (
      self._seconds.get(phase, 0.0) + time.perf_counter() - began
    )

  def count(self, phase: str, flops: float) -> None:
    """Adds floating-point operations, on all devices, to a phase."""
    self._flops[phase] = self._flops.get(phase, 0.0) + flops

  def take(
    self, metrics: Mapping[str, np.ndarray], mesh: Mesh
  ) -> dict[str, np.ndarray]:
    """Takes the metrics of an update, and begins the next one.

    Args:
      metrics: of the update, [seeds]; `tokens` are those of its completions.
      mesh: that it ran on.

    Returns:
      {name: float[seeds]}, the same for all seeds: seconds, tokens per second
      of a device, and the share of its published FLOPs, where they are known.
    """
    found = {f"{name}_seconds": own for name, own in self._seconds.items()}
    tokens = np.sum(metrics.get("tokens", 0.0))
    for phase, seconds in self._seconds.items():
      if tokens and phase in (GENERATION, UPDATE):
        found[f"{phase}_tokens_per_second"] = tokens / seconds / mesh.size
    peak = accelerators.find_peak_flops(mesh.devices.flat[0].device_kind)
    for phase, flops in self._flops.items():
      if peak is not None:
        most = self._seconds[phase] * mesh.size * peak
        found[f"{phase}_flops_utilisation"] = flops / most
    self._seconds, self._flops = {}, {}
    shape = next(iter(metrics.values())).shape
    return {name: np.full(shape, own) for name, own in found.items()}


def make_counter(jaxpr: Any, mesh: Mesh) -> Callable[[int], float]:
  """Makes a function of a program's FLOPs, by the turns of its open loops.

  Without published figures of the devices it returns 0, at no cost.
  """
  if accelerators.find_peak_flops(mesh.devices.flat[0].device_kind) is None:
    return lambda trips: 0.0
  fixed = program_cost.count_flops(jaxpr, 0)
  each = program_cost.count_flops(jaxpr, 1) - fixed
  return lambda trips: fixed + trips * each
