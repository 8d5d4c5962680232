"""Measurement of run times."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

# Calls before the measured ones end when each function's last two take as long
# as each other up to this share, or when there are too many of them.
_STEADY = 0.1
_MOST_WARM_UPS = 6


class Timing(NamedTuple):
  """Seconds of calls.

  Attributes:
    first: of the first call, which allocates memory.
    median: of the measured calls.
    least: the shortest of them.
    most: the longest.
  """

  first: float
  median: float
  least: float
  most: float


def measure(function: Callable[[], object], repeats: int) -> Timing:
  """Measures a function, after it has become steady.

  Args:
    function: function to call; its result is waited for.
    repeats: number of measured calls.
  """
  return measure_in_turn({"": function}, repeats)[""]


def measure_in_turn(
  functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, Timing]:
  """Measures functions in turn, so that a change of the machine meets all.

  Args:
    functions: as of `measure`, by name.
    repeats: rounds of measured calls.
  """
  warm = {name: [_call(function)] for name, function in functions.items()}
  while not all(map(_is_steady, warm.values())):
    for name, function in functions.items():
      warm[name].append(_call(function))
  measured = [
    {name: _call(function) for name, function in functions.items()}
    for _ in range(repeats)
  ]
  found = {}
  for name in functions:
    seconds = [each[name] for each in measured]
    median = statistics.median(seconds)
    found[name] = Timing(warm[name][0], median, min(seconds), max(seconds))
  return found


def _call(function: Callable[[], object]) -> float:
  """Seconds of a call."""
  began = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - began


def _is_steady(seconds: list[float]) -> bool:
  """Whether the calls so far are enough to begin."""
  *_, before, last = [0.0, *seconds]
  return len(seconds) >= _MOST_WARM_UPS or abs(last - before) <= _STEADY * max(
    last, before
  )
