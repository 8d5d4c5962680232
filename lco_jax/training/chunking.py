"""Sums over rows of what is too large to hold for all of them at once.

A loss on logits over a vocabulary needs [tokens, vocabulary] many times over.
Taken some rows at a time, it never holds more than that of a few; as the sum's
gradient is the sum of theirs, that is made in the same pass, and nothing has to
be computed twice.

Source: Hsu et al. 2024, arXiv:2410.10989 (gradients in the forward pass).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (params, shared, rows, constants of the rows) → (sum over the rows, pytree of
# other sums over them).
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
  """Adds up a function of rows, chunk by chunk.

  Equal to `summand` of all rows, in value and gradient, but for the order of
  summation. Only the first sum is differentiated, and only once.

  Args:
    summand: of some of the rows.
    params: pytree of float arrays, the same for all rows.
    shared: pytree of arrays without a gradient, the same for all rows.
    rows: pytree of float arrays [R, ...].
    constants: pytree of arrays [R, ...] without a gradient.
    chunk_size: rows at a time, a divisor of R.
    dtype: that the summand is given `params` and `shared` in. They are made so
      once; the gradient adds up in their own type.

  Returns:
    (sum float[], other sums).

  Raises:
    ValueError: if the chunk size does not divide the number of rows.
  """
  num_rows = len(jax.tree.leaves(rows)[0])
  if chunk_size < 1 or num_rows % chunk_size:
    raise ValueError(
      f"chunk_size {chunk_size} does not divide the number of rows, {num_rows}"
    )
  shared = jax.lax.stop_gradient(_as_type(shared, dtype))
  if chunk_size == num_rows:
    total, others = summand(_as_type(params, dtype), shared, rows, constants)
    return total, jax.lax.stop_gradient(others)

  def split(tree):
    return jax.tree.map(
      lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), tree
    )

  return _summed(summand, dtype, params, shared, split(rows), split(constants))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(summand, dtype, params, shared, rows, constants):
  """As `chunked_sum`, of [chunks, chunk_size, ...]."""
  params = _as_type(params, dtype)

  def step(sums, chunk):
    own = summand(params, shared, *chunk)
    return jax.tree.map(jnp.add, sums, own), None

  chunks = (rows, constants)
  first = jax.tree.map(lambda leaf: leaf[0], chunks)
  blank = _zeros(jax.eval_shape(summand, params, shared, *first))
  return jax.lax.scan(step, blank, chunks)[0]


def _forward(summand, dtype, params, shared, rows, constants):
  typed = _as_type(params, dtype)
  gradient = jax.value_and_grad(summand, argnums=(0, 2), has_aux=True)

  def step(carry, chunk):
    sums, of_params = carry
    own, (params_part, rows_part) = gradient(typed, shared, *chunk)
    of_params = jax.tree.map(_added, of_params, params_part)
    return (jax.tree.map(jnp.add, sums, own), of_params), rows_part

  chunks = (rows, constants)
  first = jax.tree.map(lambda leaf: leaf[0], chunks)
  blank = (
    _zeros(jax.eval_shape(summand, typed, shared, *first)),
    _zeros(params),
  )
  (sums, of_params), of_rows = jax.lax.scan(step, blank, chunks)
  return sums, (of_params, of_rows)


def _backward(summand, dtype, gradients, cotangents):
  del summand, dtype
  scale, _ = cotangents  # The other sums are not differentiated.
  of_params, of_rows = jax.tree.map(
    lambda leaf: (scale * leaf.astype(scale.dtype)).astype(leaf.dtype),
    gradients,
  )
  return of_params, None, of_rows, None


def _added(total, part):
  return total + part.astype(total.dtype)


def _as_type(tree, dtype):
  return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _zeros(tree):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


_summed.defvjp(_forward, _backward)
