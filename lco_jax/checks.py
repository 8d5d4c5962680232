"""Settings: their names, defaults, meanings and ranges, and what checks them.

Options are frozen dataclasses whose fields are made by `setting`. Every check
raises a ValueError of one line that begins with the setting's name; options
check themselves when they are made.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np


def setting(
  default: Any,
  meaning: str,
  *,
  at_least: float = -math.inf,
  above: float = -math.inf,
  at_most: float = math.inf,
  below: float = math.inf,
  choices: Collection[str] = (),
) -> Any:
  """A field of options, with what it means and the values that it may have.

  Args:
    default: its value if it is not set. A setting with the default None may
      always be None.
    meaning: one line, with units.
    at_least: bound of a number.
    above: bound of a number that it must not reach.
    at_most: bound of a number.
    below: bound of a number that it must not reach.
    choices: values that a text may have; empty for any.
  """
  return dataclasses.field(
    default=default,
    metadata={
      "meaning": meaning,
      "bounds": {
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
      },
      "choices": tuple(choices),
    },
  )


def check_settings(options: Any) -> None:
  """Checks all fields of options, in `__post_init__`.

  Raises:
    ValueError: naming the first setting that is out of range.
  """
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if value is None:
      if field.default is not None:
        raise ValueError(f"{field.name} must be set, got None")
      continue
    if field.metadata["choices"]:
      check_choice(field.name, value, field.metadata["choices"])
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
      check_number(field.name, value, **field.metadata["bounds"])


def check_number(
  name: str,
  value: float,
  at_least: float = -math.inf,
  above: float = -math.inf,
  at_most: float = math.inf,
  below: float = math.inf,
) -> None:
  """Checks a number.

  Raises:
    ValueError: if it is not finite, or out of its bounds.
  """
  inside = at_least <= value <= at_most and above < value < below
  if not (math.isfinite(value) and inside):
    bounds = [
      f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
      for sign, bound in (
        ("≥", at_least),
        (">", above),
        ("≤", at_most),
        ("<", below),
      )
      if math.isfinite(bound)
    ]
    raise ValueError(
      f"{name} must be finite{''.join(f' and {b}' for b in bounds)}, got"
      f" {value}"
    )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Checks a setting that has a few values.

  Raises:
    ValueError: if the value is not among the choices.
  """
  if value not in choices:
    raise ValueError(
      f"{name}: unknown {value!r}{suggest(value, choices)}; known:"
      f" {', '.join(choices)}"
    )


def suggest(name: str, known: Collection[str]) -> str:
  """Says which known name is near a name, for an error; or nothing."""
  near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.75)
  return f" (did you mean {near[0]}?)" if near else ""


def check_new_name(function: str, name: str, taken: Collection[str]) -> None:
  """Checks a name that something is registered under.

  Args:
    function: that registers it, for the error.
    name: the name.
    taken: names that are in use.

  Raises:
    ValueError: if the name is taken, empty, or has a character that ids and
      flags use.
  """
  if not name or set(name) & set(":,= /"):
    raise ValueError(
      f"{function}: a name has no colon, comma, equals sign, slash or space,"
      f" got {name!r}"
    )
  if name in taken:
    raise ValueError(f"{function}: the name {name!r} is taken")


def check_beta(beta: Any) -> None:
  """Checks a KL strength that the host knows; traced ones pass.

  Args:
    beta: a number, or an array of NumPy or jax.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.
  """
  if isinstance(beta, numbers.Real):
    valid = math.isfinite(beta) and beta > 0
  elif isinstance(beta, np.ndarray):
    valid = bool(np.all(np.isfinite(beta) & (beta > 0)))
  else:
    return  # Traced and device arrays cannot be checked here.
  if not valid:
    raise ValueError(f"beta must be positive and finite, got {beta}")
