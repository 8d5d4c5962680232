"""Penalties on rewards."""

import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import losses, types
from lco_jax.language import reward_shaping, training


def test_long_completions_are_penalised_softly():
  """L = 10, c = 4: nothing up to 6 tokens, all of it at 10."""
  length = jnp.arange(11)
  expected = np.clip((np.arange(11) - 6) / 4, 0, 1)
  np.testing.assert_allclose(
    reward_shaping.penalize_length(length, 10, 4), expected
  )
  np.testing.assert_array_equal(
    reward_shaping.penalize_length(length, 10, 0), 0.0
  )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_kl_is_subtracted_from_rewards(estimator):
  rng = np.random.default_rng(0)
  log_prob, reference, exact = jnp.asarray(
    rng.normal(size=(3, 2, 3, 4)), jnp.float32
  )
  mask = jnp.asarray(np.arange(4) < np.array([[4, 2, 0], [1, 3, 4]])[..., None])
  options = training.Options(
    reward_scale=2.0,
    reward_offset=-1.0,
    reference_coefficient=0.3,
    reference_kl=estimator,
    reference_kl_in="reward",
  )
  kl = reward_shaping.estimate_kl(options, log_prob, reference, exact)
  if estimator != "exact":
    exact = losses.kl_penalty(log_prob, reference, estimator)
  np.testing.assert_array_equal(kl, exact)

  @types.pytree_dataclass
  class Samples:
    mask: object
    reward: object

  samples = Samples(mask, jnp.asarray([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]]))
  shaped = reward_shaping.shape_rewards(
    options, samples, 4, jnp.where(mask, kl, jnp.nan)
  )
  total = np.where(mask, kl, 0.0).sum(-1)
  signed = 2 * np.asarray(samples.reward) - 1
  np.testing.assert_allclose(shaped.reward, signed - 0.3 * total, rtol=1e-5)
