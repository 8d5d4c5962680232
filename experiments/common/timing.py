"""How long calls take."""

import statistics
import time
from collections.abc import Callable

import jax


def seconds(function: Callable[[], object], repeats: int) -> float:
  """Median of calls after the first, which finds no memory ready.

  Args:
    function: what it returns is waited for, if devices are at it.
    repeats: calls after the first.
  """
  taken = []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready(function())
    taken.append(time.perf_counter() - began)
  return statistics.median(taken[1:])
