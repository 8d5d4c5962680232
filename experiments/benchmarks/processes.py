"""Compiling for a benchmark, and the memory of its process."""

import resource
from collections.abc import Callable

import jax

from lco_jax.training import cpu_backend


def compile_for(function: Callable, *arguments) -> Callable:
  """Compiles a function for arguments, with the options of a run."""
  options = cpu_backend.compiler_options(once=False, long_reductions=True)
  return jax.jit(function).lower(*arguments).compile(options)


def count_held() -> float:
  """GiB in use now by the accelerator, or at most so far by the process."""
  used = jax.local_devices()[0].memory_stats()  # None on CPU.
  return used["bytes_in_use"] / 2**30 if used else count_peak()


def count_peak() -> float:
  """GiB that the accelerator, or else the process, held at most so far."""
  used = jax.local_devices()[0].memory_stats()
  if used:
    return used["peak_bytes_in_use"] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
