"""Measurement of run times."""

import statistics
import time
from collections.abc import Callable

import jax


def measure(function: Callable[[], object], repeats: int) -> float:
  """Median seconds per call, without the first call, which allocates memory.

  Args:
    function: function to call; its result is waited for.
    repeats: number of calls after the first.
  """
  taken = []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready(function())
    taken.append(time.perf_counter() - began)
  return statistics.median(taken[1:])
