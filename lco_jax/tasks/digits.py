"""In-graph conversion of numbers to tokens."""

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax.tasks import base

DIGITS = "0123456789"


def write_number(value: Array, width: int, zero: int) -> Array:
  """Writes a number ≥ 0 as decimal digits without leading zeros.

  Args:
    value: int32[], below 10^width.
    width: number of slots.
    zero: token of the digit 0; the other digits' tokens follow it.

  Returns:
    int32[width], PADDING in place of leading zeros.
  """
  places = 10 ** jnp.arange(width - 1, -1, -1, dtype=jnp.int32)
  digits = (value[None] // places) % 10
  shown = (value[None] >= places) | (places == 1)
  return jnp.where(shown, digits + zero, base.PADDING)


def draw_number(key: Array, most: int) -> tuple[Array, Array]:
  """Draws (value, length): a length from 1 to `most` digits, then a number."""
  length_key, value_key = jax.random.split(key)
  length = jax.random.randint(length_key, (), 1, most + 1)
  most_at_length = jnp.power(10, jnp.arange(most + 1))[length]
  least = jnp.where(length == 1, 0, most_at_length // 10)
  return jax.random.randint(value_key, (), least, most_at_length), length
