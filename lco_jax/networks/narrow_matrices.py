"""Matrices held in 4 or 8 bits, and widened where they are used.

A narrow matrix is a dict in the place of an array: codes under the name of the
format, and one scale for each block of numbers along the last axis. Two codes
of 4 bits share a byte: one of the first half of the last axis, one of the
second. Adapters can be added to it: their product is added where it is widened.

    {"nf4": uint8[..., n / 2], "scales": float32[..., n / block]}
    {"int8": int8[..., n], "scales": float32[..., n / block]}
    either with "a": float32[..., in, r], "b": float32[..., r, out]

Source: Dettmers et al. 2023, arXiv:2305.14314 (NF4, adapters on it).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import types

FORMATS = ("nf4", "int8")
_BLOCK = 64
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact 0.
_NF4 = np.array(
  [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
  ],
  np.float32,
)


def narrow(params: types.Params, fmt: str) -> types.Params:
  """Narrows the matrices of a language model, on the host.

  Args:
    params: parameters of the model, NumPy arrays.
    fmt: one of FORMATS.

  Returns:
    The parameters with narrow matrices. Vectors, and matrices whose last axis
    is not a multiple of 16, stay as they are.
  """

  def convert(path, leaf):
    last = path[-1].key
    if last not in ("kernel", "embedding") or leaf.shape[-1] % 16:
      return leaf
    return _quantize(np.asarray(leaf, np.float32), fmt)

  return jax.tree_util.tree_map_with_path(convert, params)


def is_narrow(params: types.Params) -> bool:
  """Whether some matrices are narrow."""
  return any(map(_is_matrix, _leaves(params)))


def widen(params: types.Params) -> types.Params:
  """Widens all narrow matrices to float32, their adapters added."""
  return jax.tree.map(
    lambda leaf: _widen(leaf) if _is_matrix(leaf) else leaf,
    params,
    is_leaf=_is_matrix,
  )


def take_rows(matrix: Any, rows: Array) -> Array:
  """Takes rows of a matrix, narrow or not: float[..., n]."""
  if not _is_matrix(matrix):
    return jnp.asarray(matrix)[rows]
  return _widen({name: jnp.asarray(x)[rows] for name, x in matrix.items()})


def add_adapters(matrix: Any, a: Array, b: Array) -> dict[str, Any]:
  """Adds the product of `a` and `b` to a narrow matrix."""
  return {**matrix, "a": a, "b": b}


def find_shape(matrix: Any) -> tuple[int, ...]:
  """Finds the shape of a matrix, narrow or not."""
  if not _is_matrix(matrix):
    return matrix.shape
  if "int8" in matrix:
    return matrix["int8"].shape
  *rest, half = matrix["nf4"].shape
  return (*rest, 2 * half)


def count_numbers(params: types.Params) -> int:
  """Counts the numbers that parameters stand for."""
  return sum(int(np.prod(find_shape(leaf))) for leaf in _leaves(params))


def _leaves(params):
  return jax.tree.leaves(params, is_leaf=_is_matrix)


def _is_matrix(node: Any) -> bool:
  return isinstance(node, dict) and any(fmt in node for fmt in FORMATS)


def _quantize(matrix: np.ndarray, fmt: str) -> dict[str, np.ndarray]:
  size = matrix.shape[-1]
  block = next(b for b in (_BLOCK, 32, 16) if size % b == 0)
  blocks = matrix.reshape(*matrix.shape[:-1], -1, block)
  scales = np.abs(blocks).max(axis=-1)
  share = blocks / np.where(scales == 0, 1, scales)[..., None]
  if fmt == "int8":
    codes = np.rint(share * 127).astype(np.int8)
    return {"int8": codes.reshape(matrix.shape), "scales": scales}
  # The nearest level: boundaries lie half-way between neighbours.
  codes = np.searchsorted((_NF4[1:] + _NF4[:-1]) / 2, share).astype(np.uint8)
  first, second = np.split(codes.reshape(matrix.shape), 2, axis=-1)
  return {"nf4": first | second << 4, "scales": scales}


def _widen(matrix: dict[str, Any]) -> Array:
  if "int8" in matrix:
    share = jnp.asarray(matrix["int8"]).astype(jnp.float32) / 127.0
  else:
    codes = jnp.asarray(matrix["nf4"])
    codes = jnp.concatenate([codes & 15, codes >> 4], axis=-1)
    share = jnp.asarray(_NF4)[codes]
  scales = jnp.asarray(matrix["scales"])
  blocks = share.reshape(*scales.shape, -1) * scales[..., None]
  wide = blocks.reshape(share.shape)
  if "a" in matrix:
    wide = wide + matrix["a"] @ matrix["b"]
  return wide
