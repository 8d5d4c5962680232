"""Parameters that stay in a model file, and are read by parts when needed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Bytes of a block, where an array is read in blocks of rows.
_BLOCK = 2**26


@dataclasses.dataclass(frozen=True, eq=False)
class StoredArray:
  """A float32 parameter in a model file.

  `array[slices]` reads a part, `numpy.asarray(array)` the whole.

  Attributes:
    shape: of the whole.
    read: a slice of each axis → that part, as a NumPy array of its own. Raises
      ModelFileError if a number of it is not finite.
    row_axis: axis along which the file has its rows, or its layers.
  """

  shape: tuple[int, ...]
  read: Callable[[tuple[slice, ...]], np.ndarray]
  row_axis: int = 0

  @property
  def dtype(self) -> np.dtype:
    """Type of its numbers."""
    return np.dtype(np.float32)

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    return self.read(index)

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    if copy is False:
      raise ValueError("a stored array is always copied")
    whole = self[(slice(None),) * self.ndim]
    return whole if dtype is None else whole.astype(dtype, copy=False)


def read_all(params: Any) -> Any:
  """Reads all stored arrays of a pytree: NumPy arrays."""
  return jax.tree.map(np.asarray, params)


def check_finite(params: Any, share: int, num_shares: int) -> None:
  """Reads a share of the stored arrays, to find numbers that are not finite.

  Args:
    params: of a model.
    share: which share.
    num_shares: that read all of it together.

  Raises:
    ModelFileError: naming a tensor with such a number.
  """
  number = 0
  for leaf in jax.tree.leaves(params):
    if not isinstance(leaf, StoredArray):
      continue
    count = leaf.shape[leaf.row_axis]
    row = leaf.dtype.itemsize * int(np.prod(leaf.shape)) // count
    size = max(1, _BLOCK // row)
    for first in range(0, count, size):
      if number % num_shares == share:
        index = [slice(None)] * leaf.ndim
        index[leaf.row_axis] = slice(first, first + size)
        leaf[tuple(index)]
      number += 1
