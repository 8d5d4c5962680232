"""Sums over rows, some rows at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.training import chunking


@pytest.mark.parametrize("size", [1, 4, 6, 9])
def test_zeros_fill_up_the_last_chunk(size):
  """Value and gradient are those of all rows at once."""
  values = jnp.arange(1.0, 7.0)[:, None]

  def total(weight, rows):
    return chunking.chunked_sum(
      lambda own, _, rows, constants: (
        jnp.sum(own[0] * rows[:, 0] ** 2 * constants),
        jnp.sum(constants),
      ),
      weight,
      (),
      rows,
      jnp.full(6, 2.0),
      size,
      "float32",
    )

  (value, count), gradients = jax.value_and_grad(
    total, argnums=(0, 1), has_aux=True
  )(jnp.array([3.0]), values)
  assert (value, count) == (3 * 2 * 91, 12)
  np.testing.assert_array_equal(gradients[0], [182.0])
  np.testing.assert_array_equal(gradients[1], 12 * values)


def test_a_chunk_has_rows():
  with pytest.raises(ValueError, match="chunk_size must be ≥ 1, got 0"):
    chunking.chunked_sum(
      lambda *_: (0.0, ()), (), (), jnp.ones((6, 1)), jnp.ones(6), 0, "float32"
    )


@pytest.mark.parametrize("chunk_size", [1, 512])
def test_gradients_of_narrow_chunks_add_up_in_the_parameters_own_type(
  chunk_size,
):
  """In bfloat16 a sum of ones ends at 256."""
  narrow = jnp.bfloat16

  def summand(params, shared, rows, constants):
    assert params.dtype == shared.dtype == narrow  # Not made so in a loop.
    return jnp.sum(params * shared * rows * constants, dtype=jnp.float32), ()

  def total(params):
    rows = jnp.ones((512, 1), narrow)
    return chunking.chunked_sum(
      summand, params, params, rows, rows, chunk_size, narrow
    )[0]

  value, gradient = jax.value_and_grad(total)(jnp.ones((1, 1)))
  assert value == 512 and gradient.dtype == jnp.float32
  np.testing.assert_array_equal(gradient, [[512.0]])
