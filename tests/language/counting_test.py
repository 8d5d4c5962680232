"""What of a batch counts, by the rules of an algorithm."""

import types as python_types

import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, losses
from lco_jax.language import counting
from lco_jax.training import placement

# All samples of the second prompt earn the same; the last slot holds no token.
_SAMPLES = python_types.SimpleNamespace(
  reward=jnp.array([[1.0, 0.5], [0.0, 0.5]]),
  mask=jnp.ones((2, 2, 3), bool).at[..., -1].set(False),
)
_ADVANTAGE = jnp.arange(12.0).reshape(2, 2, 3) - 4.0


def _counted(algorithm):
  row = algorithms.ALGORITHMS[algorithm]

  def of_batch(advantage):
    return counting.of_batch(row, _SAMPLES, advantage, 0.1)

  return placement.bind_device_axis(of_batch)(_ADVANTAGE)


def test_tokens_count_by_their_advantage():
  found = _counted("lco_mse")
  np.testing.assert_array_equal(found.mask, _SAMPLES.mask)
  np.testing.assert_array_equal(found.even, [[False, True]] * 2)
  np.testing.assert_array_equal(
    found.advantage, np.where(_SAMPLES.mask, _ADVANTAGE, 0.0)
  )


def test_groups_whose_rewards_are_equal_are_left_out():
  found = _counted("dapo")
  np.testing.assert_array_equal(found.mask[:, 0], _SAMPLES.mask[:, 0])
  assert not found.mask[:, 1].any()
  assert not found.advantage[:, 1].any()


def test_weights_take_the_place_of_advantages():
  found = _counted("vmpo")
  expected = losses.vmpo_weights(
    jnp.where(_SAMPLES.mask, _ADVANTAGE, 0.0), 0.1, _SAMPLES.mask
  )
  np.testing.assert_allclose(found.advantage, expected, rtol=1e-6)
  assert np.abs(found.advantage - _ADVANTAGE).max() > 0.1


def test_one_sample_compares_with_none():
  rows = algorithms.ALGORITHMS
  for algorithm, advantage in (
    ("lco_mse", "group_centred"),
    ("dapo", "batch_centred"),
  ):
    with pytest.raises(ValueError, match="num_samples must be ≥ 2"):
      counting.check_groups(rows[algorithm], advantage, 1)
  counting.check_groups(rows["lco_mse"], "batch_centred", 1)
  counting.check_groups(rows["dapo"], "batch_centred", 2)
