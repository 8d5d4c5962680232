"""Packing: the tokens of sequences without the slots that hold none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks

_MASK = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)


@pytest.mark.parametrize("size", [7, 8, 16])
def test_tokens_against_indexing(size):
  """In the order of their slots; zeros fill up what is left."""
  x = np.arange(1.0, 33.0).reshape(16, 2)
  packing = networks.make_packing(jnp.asarray(_MASK), size)
  packed = networks.pack(jnp.asarray(x), packing)
  expected = np.zeros((size, 2))
  expected[:7] = x[_MASK.reshape(-1)]
  np.testing.assert_array_equal(packed, expected)
  spread = networks.unpack(packed, packing)
  np.testing.assert_array_equal(spread, x * _MASK.reshape(-1, 1))


@pytest.mark.parametrize("function", [networks.pack, networks.unpack])
def test_gradients_are_transposes(function, float64):
  packing = networks.make_packing(jnp.asarray(_MASK), 9)
  size = 16 if function is networks.pack else 9
  x = jnp.asarray(np.random.default_rng(0).normal(size=(size, 3)))
  _, pull = jax.vjp(lambda x: function(x, packing), x)
  # The map is linear: its columns come from unit vectors.
  columns = jnp.stack(
    [function(jnp.eye(size)[:, i : i + 1], packing)[:, 0] for i in range(size)],
    axis=1,
  )
  rows = jnp.stack(
    [
      pull(jnp.zeros((len(columns), 3)).at[i, 0].set(1.0))[0][:, 0]
      for i in range(len(columns))
    ]
  )
  np.testing.assert_array_equal(rows, columns)


def test_nothing_is_read_of_slots_without_tokens():
  packing = networks.make_packing(jnp.asarray(_MASK), 8)
  x = np.where(_MASK.reshape(-1, 1), 1.0, np.nan)
  assert np.isfinite(networks.pack(jnp.asarray(x), packing)).all()
