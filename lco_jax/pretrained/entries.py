"""Checked reading of the entries of a model file's configuration."""

import functools
import pathlib
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from lco_jax.pretrained import model_file

# Upper limit on sizes in a file, which become array shapes.
_MAX_SIZE = 2**31 - 1
# Smallest and largest positive number.
_TINY, _HUGE = 1e-30, 1e30


class Entries:
  """Entries of a mapping; errors name the file and the key.

  An entry that is None is absent.
  """

  def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
    self.path, self._values = path, values

  def get(self, key: str, default: Any = None) -> Any:
    """An entry as it is."""
    value = self._values.get(key)
    return default if value is None else value

  def size(self, key: str, default: int | None = None) -> int:
    """A whole number from 1; it must be there if there is no default."""
    value = self._require(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
      raise self.error(f"{key} {reprlib.repr(value)} is not a whole number")
    if not 1 <= value <= _MAX_SIZE:
      raise self.error(f"{key} {value} is out of range")
    return value

  def positive(self, key: str, default: float | None = None) -> float:
    """A positive number; it must be there if there is no default."""
    value = self._require(key, default)
    if not _is_number(value) or not _TINY <= value <= _HUGE:
      raise self.error(
        f"{key} {reprlib.repr(value)} is not a number from {_TINY} to {_HUGE}"
      )
    return float(value)

  def maybe_positive(self, key: str) -> float | None:
    """A positive number, or None where there is none."""
    return None if self.get(key) is None else self.positive(key)

  def flag(self, key: str, default: bool) -> bool:
    """True or false."""
    value = self.get(key, default)
    if not isinstance(value, bool):
      raise self.error(f"{key} {reprlib.repr(value)} is not true or false")
    return value

  def text(self, key: str, default: str) -> str:
    """A text."""
    value = self.get(key, default)
    if not isinstance(value, str):
      raise self.error(f"{key} {reprlib.repr(value)} is not a text")
    return value

  def table(self, key: str) -> Mapping[str, Any]:
    """A table; an empty one where there is none."""
    value = self.get(key, {})
    if not isinstance(value, Mapping):
      raise self.error(f"{key} {reprlib.repr(value)} is not a table")
    return value

  def numbers(self, key: str, count: int) -> tuple[float, ...]:
    """So many positive numbers."""
    value = self._require(key, None)
    if not (
      isinstance(value, list)
      and len(value) == count
      and all(_is_number(x) and _TINY <= x <= _HUGE for x in value)
    ):
      raise self.error(f"{key} is not a list of {count} positive numbers")
    return tuple(float(x) for x in value)

  def require(self, key: str, *accepted: Any) -> None:
    """Raises unless the entry is absent or one of `accepted`."""
    value = self.get(key)
    if value is None:
      return
    # 0 is not False here, nor 1 True.
    if not any(type(value) is type(own) and value == own for own in accepted):
      raise self.error(f"{key} {reprlib.repr(value)} is not supported")

  def refuse_unknown(self, known: Collection[str]) -> None:
    """Raises for an entry that is not among `known`."""
    for key, value in self._values.items():
      if value is not None and key not in known:
        raise self.error(
          f"{key} {reprlib.repr(value)} is not known, so not supported"
        )

  def warn_of_unknown(self, known: Collection[str]) -> None:
    """Logs once the entries that are not among `known`."""
    unknown = sorted(
      key
      for key, value in self._values.items()
      if value is not None and key not in known
    )
    if unknown:
      _warn(self.path, tuple(unknown))

  def error(self, problem: str) -> model_file.ModelFileError:
    """An error that names the file."""
    return model_file.ModelFileError(self.path, problem)

  def _require(self, key, default):
    value = self.get(key, default)
    if value is None:
      raise self.error(f"{key} is missing")
    return value


@functools.cache
def _warn(path: pathlib.Path, unknown: tuple[str, ...]) -> None:
  logging.warning(
    "%s: not known, and taken to change nothing: %s", path, ", ".join(unknown)
  )


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
