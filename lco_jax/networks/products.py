"""Products of narrow matrices that add up in float32.

bfloat16 halves what is moved and, where the machine multiplies it, what is
computed; its sums want more digits. Left to automatic differentiation, a
product of bfloat16 that yields float32 has gradients of mixed types, which
machines do not multiply: here they are narrowed first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def product(spec: str, left: Array, right: Array) -> Array:
  """`jnp.einsum` of two arrays of one type, in float32 at least.

  Of float32, accelerators may round the operands: jax_default_matmul_precision.

  Args:
    spec: "ab,bc->ac", say; every index is in two of the three.
    left: bfloat16, float32 or float64.
    right: of the same type.

  Returns:
    float32, or float64. Gradients are of the operands' type, their sums in
    float32 too.
  """
  if left.dtype == jnp.bfloat16:
    return _narrow(spec, left, right)
  return jnp.einsum(spec, left, right)


def of_rows(spec: str, left: Array, right: Array) -> Array:
  """`product` of every row of float[..., rows' features] with a matrix."""
  rows = product(spec, left.reshape(-1, left.shape[-1]), right)
  return rows.reshape(*left.shape[:-1], -1)


def widened_product(
  left: Array, right: Array, dimension_numbers: Any, **kwargs: Any
) -> Array:
  """`product` as what `nn.Dense` multiplies with: float32."""
  del dimension_numbers, kwargs  # Those of a linear layer.
  return of_rows("ri,io->ro", left, right)


def dense_product(
  left: Array, right: Array, dimension_numbers: Any, **kwargs: Any
) -> Array:
  """The same, narrowed to the operands' type again."""
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
