"""Sums over rows, computed in chunks to bound memory.

A loss on vocabulary logits needs several arrays [tokens, vocabulary].
Processing a few rows at a time bounds the memory to that of one chunk. The
gradient of the sum is the sum of the chunks' gradients, so the same pass
computes both and nothing is computed twice.

Source: Hsu et al. 2024, arXiv:2410.10989 (gradients in the forward pass).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lco_jax.training import rows as rows_lib

# (params, shared, rows, constants of the rows) → (sum over the rows, pytree of
# other sums over the rows).
Summand = Callable[[Any, Any, Any, Any], tuple[jax.Array, Any]]


def chunked_sum(
  summand: Summand,
  params: Any,
  shared: Any,
  rows: Any,
  constants: Any,
  chunk_size: int,
  dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, Any]:
  """Sums a function of rows, chunk by chunk.

  Equals `summand` of all rows in value and gradient, up to the order of
  summation. Only the first sum has a gradient, and only a first derivative.

  Args:
    summand: computes the sums over some of the rows; rows of zeros, which fill
      up the last chunk, must add nothing.
    params: pytree of float arrays, the same for all rows.
    shared: pytree of arrays without a gradient, the same for all rows.
    rows: pytree of float arrays [R, ...].
    constants: pytree of arrays [R, ...] without a gradient.
    chunk_size: rows per chunk, see `rows.fit_chunks`.
    dtype: dtype of `params` and `shared` for the summand. They are cast once;
      the gradient accumulates in their original dtype.

  Returns:
    (sum float[], other sums).

  Raises:
    ValueError: if the chunk size is less than 1.
  """
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be ≥ 1, got {chunk_size}")
  num_rows = len(jax.tree.leaves(rows)[0])
  shared = jax.lax.stop_gradient(_cast(shared, dtype))
  if chunk_size >= num_rows:
    total, others = summand(_cast(params, dtype), shared, rows, constants)
    return total, jax.lax.stop_gradient(others)

  chunks = rows_lib.split_chunks((rows, constants), chunk_size)
  return _sum_chunks(summand, dtype, params, shared, *chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_chunks(summand, dtype, params, shared, rows, constants):
  """Sums over rows and constants [chunks, chunk_size, ...]."""
  params = _cast(params, dtype)

  def step(sums, chunk):
    own = summand(params, shared, *chunk)
    return jax.tree.map(jnp.add, sums, own), None

  chunks = (rows, constants)
  first = jax.tree.map(lambda leaf: leaf[0], chunks)
  blank = _zeros(jax.eval_shape(summand, params, shared, *first))
  return jax.lax.scan(step, blank, chunks)[0]


def _forward(summand, dtype, params, shared, rows, constants):
  typed = _cast(params, dtype)
  gradient = jax.value_and_grad(summand, argnums=(0, 2), has_aux=True)

  def step(carry, chunk):
    sums, params_gradient = carry
    own, (params_part, rows_part) = gradient(typed, shared, *chunk)
    params_gradient = jax.tree.map(_accumulate, params_gradient, params_part)
    return (jax.tree.map(jnp.add, sums, own), params_gradient), rows_part

  chunks = (rows, constants)
  first = jax.tree.map(lambda leaf: leaf[0], chunks)
  blank = (
    _zeros(jax.eval_shape(summand, typed, shared, *first)),
    _zeros(params),
  )
  (sums, params_gradient), rows_gradient = jax.lax.scan(step, blank, chunks)
  return sums, (params_gradient, rows_gradient)


def _backward(summand, dtype, gradients, cotangents):
  del summand, dtype
  scale, _ = cotangents  # The other sums have no gradient.
  params_gradient, rows_gradient = jax.tree.map(
    lambda leaf: (scale * leaf.astype(scale.dtype)).astype(leaf.dtype),
    gradients,
  )
  return params_gradient, None, rows_gradient, None


def _accumulate(total, part):
  return total + part.astype(total.dtype)


def _cast(tree, dtype):
  return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _zeros(tree):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


_sum_chunks.defvjp(_forward, _backward)
