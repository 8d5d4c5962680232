"""What a reader of model files says: an error in one line, tensors by name."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class ModelFileError(ValueError):
  """A file of a model cannot be used; the message begins with its path."""

  def __init__(self, path: pathlib.Path | str, what: object):
    super().__init__(f"{path}: {what}")


class Tensor(NamedTuple):
  """A tensor that is not read yet.

  Attributes:
    shape: of the array.
    read: () → float32 array of that shape.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def read_text(path: pathlib.Path) -> str:
  """A UTF-8 file's text.

  Raises:
    ModelFileError: if it cannot be read.
  """
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise ModelFileError(path, f"cannot be read: {error}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON file that holds a table.

  Raises:
    ModelFileError: if it cannot be read, or holds something else.
  """
  try:
    values = json.loads(read_text(path))
  except (ValueError, RecursionError) as error:
    if isinstance(error, ModelFileError):
      raise
    raise ModelFileError(path, f"is no JSON: {error}") from error
  if not isinstance(values, dict):
    raise ModelFileError(path, "holds no table")
  return values
