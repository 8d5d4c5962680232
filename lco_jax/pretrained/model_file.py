"""Helpers of model file readers: errors, tensors, text and JSON."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class ModelFileError(ValueError):
  """A model file cannot be used; the message begins with its path."""

  def __init__(self, path: pathlib.Path | str, problem: object):
    # Other packages' errors may have several lines.
    super().__init__(f"{path}: {' '.join(str(problem).split())}")


class Tensor(NamedTuple):
  """A tensor in a file, read on demand.

  Attributes:
    shape: shape of the array.
    read_part: a slice of each axis → float32 array, that part.
  """

  shape: tuple[int, ...]
  read_part: Callable[[Sequence[slice]], np.ndarray]

  def read(self) -> np.ndarray:
    """Reads the whole array."""
    return self.read_part((slice(None),) * len(self.shape))


def map_array(
  path: pathlib.Path, dtype: Any, offset: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Maps an array of a file into memory, as long as the result is referred to.

  Readers map each part anew: the pages of a map that stays open would count as
  memory of the process, until it held the whole file.

  Raises:
    ModelFileError: if the file cannot be read, or has been cut off meanwhile.
  """
  try:
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
  except (OSError, ValueError) as error:
    raise ModelFileError(path, f"cannot be read: {error}") from error


def read_text(path: pathlib.Path) -> str:
  """Reads a UTF-8 text file.

  Raises:
    ModelFileError: if the file cannot be read.
  """
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise ModelFileError(path, f"cannot be read: {error}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that contains an object.

  Raises:
    ModelFileError: if the file cannot be read or contains something else.
  """
  try:
    values = json.loads(read_text(path))
  except (ValueError, RecursionError) as error:
    if isinstance(error, ModelFileError):
      raise
    raise ModelFileError(path, f"is not valid JSON: {error}") from error
  if not isinstance(values, dict):
    raise ModelFileError(path, "does not contain a JSON object")
  return values
