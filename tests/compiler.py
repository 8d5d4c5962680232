"""How tests compile: in a hurry, as they compile more than they run."""

import os
import subprocess
import sys

# Kept there for processes that tests start.
_KEPT = "LCO_JAX_TESTS_COMPILER"
# One module of machine code: there is no core to spare for parts of it.
_LEVEL = (
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# The code generator before the present one compiles twice as fast.
_GENERATOR = "--xla_cpu_use_fusion_emitters=false"


def flags(devices: int | None = None) -> str:
  """XLA_FLAGS of a process, to be set before jax starts.

  Args:
    devices: how many CPU devices it has; None if it is to choose.
  """
  if _KEPT not in os.environ:
    os.environ[_KEPT] = f"{_LEVEL} {_GENERATOR}" if _knows() else _LEVEL
  if devices is None:
    return os.environ[_KEPT]
  count = f"--xla_force_host_platform_device_count={devices}"
  return f"{count} {os.environ[_KEPT]}"


def _knows() -> bool:
  """Whether this jaxlib still has the generator; it dies of unknown flags."""
  start = "import jax; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
  done = subprocess.run(
    [sys.executable, "-c", start],
    env=os.environ | {"XLA_FLAGS": _GENERATOR},
    stderr=subprocess.DEVNULL,
    timeout=120,
    check=False,
  )
  return done.returncode == 0
