"""Matrix products of bfloat16 operands with float32 accumulation.

bfloat16 halves memory traffic and, on suitable hardware, compute time, but its
sums need more digits. Differentiating a bfloat16 product with a float32 result
multiplies mixed dtypes, which hardware does not support; these functions first
narrow the incoming gradient to the operands' dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def product(spec: str, left: Array, right: Array) -> Array:
  """`jnp.einsum` of two arrays of one dtype, in float32 or wider.

  Accelerators may round float32 operands; see jax_default_matmul_precision.

  Args:
    spec: like "ab,bc->ac"; every index occurs in two of the three terms.
    left: bfloat16, float32 or float64.
    right: same dtype.

  Returns:
    float32 or float64. Gradients have the operands' dtype and are accumulated
    in float32 too.
  """
  if left.dtype == jnp.bfloat16:
    return _narrow(spec, left, right)
  return jnp.einsum(spec, left, right)


def multiply_rows(spec: str, left: Array, right: Array) -> Array:
  """Multiplies every row of float[..., features] by a matrix."""
  rows = product(spec, left.reshape(-1, left.shape[-1]), right)
  return rows.reshape(*left.shape[:-1], -1)


def widened_product(
  left: Array, right: Array, dimension_numbers: Any, **kwargs: Any
) -> Array:
  """`dot_general` of `nn.Dense` with a float32 result."""
  del dimension_numbers, kwargs  # Fixed for a linear layer.
  return multiply_rows("ri,io->ro", left, right)


def dense_product(
  left: Array, right: Array, dimension_numbers: Any, **kwargs: Any
) -> Array:
  """Same as `widened_product`, with the result in the operands' dtype."""
  return widened_product(left, right, dimension_numbers, **kwargs).astype(
    left.dtype
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow(spec, left, right):
  return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _forward(spec, left, right):
  return _narrow(spec, left, right), (left, right)


def _backward(spec, operands, gradient):
  left, right = operands
  inputs, output = spec.split("->")
  of_left, of_right = inputs.split(",")
  gradient = gradient.astype(left.dtype)
  return (
    _narrow(f"{output},{of_right}->{of_left}", gradient, right).astype(
      left.dtype
    ),
    _narrow(f"{of_left},{output}->{of_right}", left, gradient).astype(
      right.dtype
    ),
  )


_narrow.defvjp(_forward, _backward)
