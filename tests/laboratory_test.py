import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import algorithms, laboratory
from tests import oracles

pytestmark = pytest.mark.usefixtures("float64")


def _bandit(num_actions=4, seed=0):
  rng = np.random.default_rng(seed)
  return (
    jnp.asarray(rng.normal(size=num_actions)),
    jnp.asarray(rng.normal(size=num_actions)),
  )


def _loss(algorithm, **options):
  return algorithms.make_policy_loss(algorithm, **options)


def test_the_true_gradient_is_that_of_the_expected_reward():
  logits, rewards = _bandit()
  expected = oracles.gradient(
    lambda z: -oracles.softmax(z) @ np.asarray(rewards), logits
  )
  found = laboratory.true_gradient(logits, rewards)
  np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
  ("policy_loss", "scale"),
  [
    (_loss("reinforce"), 1.0),
    (_loss("ppo"), 1.0),
    (_loss("mdpo"), 1.0),
    # LCO-MSE's first step is the policy gradient, action by action, over β.
    (_loss("lco_mse", support="sampled"), 1 / 0.7),
    (_loss("lco_mse", centred=False), 1 / 0.7),
    (_loss("apa", divergence_coefficient=0.7), 2 * 0.7),
  ],
)
def test_who_is_unbiased(policy_loss, scale):
  found = laboratory.moments(policy_loss, *_bandit(), beta=0.7)
  np.testing.assert_allclose(found.cosine, 1.0, atol=1e-9)
  np.testing.assert_allclose(found.scale, scale, rtol=1e-9)


def test_sampled_kld_is_biased_and_its_weight_or_dense_advantages_mend_it():
  """To first order in 1/β; at β = 1e4 that is all there is."""
  bandit = _bandit()
  sampled, weighted = (
    laboratory.moments(_loss("lco_kld", max_importance_weight=w), *bandit, 1e4)
    for w in (1.0, 1e9)
  )
  dense = laboratory.moments(_loss("lco_kld"), *bandit, 1e4, dense=True)
  assert sampled.cosine < 0.99
  np.testing.assert_allclose(
    [weighted.cosine, dense.cosine], [1.0, 1.0], atol=1e-6
  )
  np.testing.assert_allclose(
    [1e4 * weighted.scale, 1e4 * dense.scale], [1.0, 1.0], rtol=1e-3
  )
  np.testing.assert_allclose(dense.variance, 0.0, atol=1e-20)


def test_moments_against_a_loop():
  logits, rewards = _bandit()
  p = oracles.softmax(np.asarray(logits))
  advantage = np.asarray(rewards) - p @ np.asarray(rewards)
  each = -advantage[:, None] * (np.eye(4) - p)
  mean = p @ each
  found = laboratory.moments(_loss("reinforce"), logits, rewards, 1.0)
  np.testing.assert_allclose(found.mean, mean, atol=1e-12)
  np.testing.assert_allclose(
    found.variance, p @ ((each - mean) ** 2).sum(-1), rtol=1e-12
  )


def _path(policy_loss, num_updates=1, num_epochs=200, learning_rate=0.5, **own):
  return laboratory.expected_path(
    policy_loss,
    jnp.log(jnp.array([0.05, 0.25, 0.7])),
    jnp.array([1.0, 0.5, 0.0]),
    learning_rate=learning_rate,
    num_updates=num_updates,
    num_epochs=num_epochs,
    **{"beta": 0.3} | own,
  )


def test_gradients_of_convex_losses_shrink_and_ppo_s_do_not():
  """At steps up to 1/L on a fixed target."""
  for name, rate in (("lco_mse", 1.0), ("lco_lch", 1.0), ("lco_kld", 1.0)):
    _, norms = _path(_loss(name), learning_rate=rate, dense=True)
    assert (np.diff(norms) <= 1e-12).all() and norms[-1] < 0.05 * norms[0]
  _, norms = _path(_loss("ppo", clip_low=0.9, clip_high=9.0))
  assert np.diff(norms).max() > 0.01
  # The linear counterexample: convex, with no minimiser to come to.
  _, norms = _path(_loss("lco_mse", anchor="current", centred=False))
  np.testing.assert_allclose(norms, norms[0], rtol=1e-9)


def test_exact_dense_updates_improve_until_the_best_action_is_taken():
  """Mirror descent: each update taken to its end raises the reward."""
  rewards = np.array([1.0, 0.5, 0.0])
  for name, rate in (("lco_mse", 1.0), ("lco_kld", 1.0)):
    logits, _ = _path(
      _loss(name), 20, 100, learning_rate=rate, dense=True, beta=1.0
    )
    value = oracles.softmax(np.asarray(logits[::100])) @ rewards
    assert (np.diff(value) > 0).all() and value[-1] > 0.99


def test_paths_begin_where_they_are_told_to_and_draw_anew():
  """Two updates of three epochs are two calls of one update."""
  loss = _loss("lco_kld")
  whole, _ = _path(loss, 2, 3)
  first, _ = _path(loss, 1, 3)
  second, _ = laboratory.expected_path(
    loss,
    first[-1],
    jnp.array([1.0, 0.5, 0.0]),
    beta=0.3,
    learning_rate=0.5,
    num_updates=1,
    num_epochs=3,
  )
  np.testing.assert_allclose(whole[:4], first, atol=1e-12)
  np.testing.assert_allclose(whole[3:], second, atol=1e-12)
  np.testing.assert_allclose(
    jax.nn.softmax(whole[0]), [0.05, 0.25, 0.7], atol=1e-12
  )


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_a_draw_moves_lco_to_its_target_and_reinforce_beyond(advantage):
  old_logits = jnp.log(jnp.array([0.02, 0.5, 0.48]))

  def after(algorithm, **options):
    return laboratory.descend_on_draw(
      _loss(algorithm, **options),
      old_logits,
      0,
      advantage,
      beta=0.5,
      learning_rate=0.5,
      num_steps=100,
    )

  moved = after("lco_mse", centred=False) - old_logits
  np.testing.assert_allclose(moved, [advantage / 0.5, 0, 0], atol=1e-9)
  unbounded = jax.nn.log_softmax(after("reinforce"))[0]
  bounded = jax.nn.log_softmax(after("lco_mse"))[0]
  assert (unbounded - bounded) * advantage > 0.1
