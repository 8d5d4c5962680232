"""Sums over rows, some rows at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.training import chunking


def test_a_chunk_must_divide_the_rows():
  with pytest.raises(ValueError, match="chunk_size 4"):
    chunking.chunked_sum(
      lambda *_: (0.0, ()), (), (), jnp.ones((6, 1)), jnp.ones(6), 4, "float32"
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
