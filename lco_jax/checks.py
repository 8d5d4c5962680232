"""Checks of settings: each raises a line that names the setting."""

import math
from collections.abc import Collection


def check_number(
  name: str, value: float, at_least: float = -math.inf, above: float = -math.inf
) -> None:
  """Checks a number that an option has.

  Raises:
    ValueError: if it is not finite, less than `at_least` or not above `above`.
  """
  if not (math.isfinite(value) and value >= at_least and value > above):
    bound = f"≥ {at_least}" if at_least > above else f"> {above}"
    raise ValueError(f"{name} must be finite and {bound}, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Checks a setting that has a few values.

  Raises:
    ValueError: if the value is not among the choices.
  """
  if value not in choices:
    raise ValueError(f"{name}: unknown {value!r}; known: {', '.join(choices)}")
