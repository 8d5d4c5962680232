"""What LCO's first step is, in terms of the policy gradient (derived)."""

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import advantages, losses, targets


def _policy(num_actions=5, seed=0):
  logits = jnp.asarray(np.random.default_rng(seed).normal(size=num_actions))
  return logits, jax.nn.softmax(logits)


def _sampled_kld_gradient(logits, action, advantage, beta):
  target = targets.optimal_logits(
    logits,
    advantages.sampled(advantage, action, logits.shape[-1]),
    beta,
  )
  return jax.grad(losses.lco_kld_loss)(logits, target)


def test_on_policy_sampled_kld_is_weighted_reinforce(float64):
  """∇ = −w (e_a − p), w = p(a)(e^{A/β} − 1)/Z = (q(a) − p(a))/(1 − p(a))."""
  logits, p = _policy()
  beta = 0.7
  for action in range(5):
    for advantage in (1.3, -0.8):
      partition = 1 + p[action] * (np.exp(advantage / beta) - 1)
      w = p[action] * (np.exp(advantage / beta) - 1) / partition
      q = p[action] * np.exp(advantage / beta) / partition
      np.testing.assert_allclose(w, (q - p[action]) / (1 - p[action]))
      np.testing.assert_allclose(
        _sampled_kld_gradient(
          logits, jnp.array(action), jnp.array(advantage), beta
        ),
        -w * (np.eye(5)[action] - p),
        atol=1e-12,
      )


def test_expected_sampled_kld_gradient_is_biased_to_first_order(float64):
  """E[∇] ≈ −(1/β) Σ p(a)² A(a) (e_a − p), up to O(1/β²)."""
  logits, p = _policy()
  advantage = jnp.asarray(np.random.default_rng(1).normal(size=5))
  beta = 1e5
  actions = jnp.arange(5)
  gradients = jax.vmap(lambda a, x: _sampled_kld_gradient(logits, a, x, beta))(
    actions, advantage
  )
  expected = -jnp.sum(
    (p**2 * advantage)[:, None] * (jnp.eye(5) - p[None]), axis=0
  )
  np.testing.assert_allclose(
    beta * p @ gradients, expected, atol=1e-4, rtol=1e-3
  )
  # The importance weight 1/p(a) restores the policy gradient's direction.
  weights = losses.importance_weight(
    jnp.broadcast_to(logits, (5, 5)), actions, 1e9
  )
  policy_gradient = -jnp.sum(
    (p * advantage)[:, None] * (jnp.eye(5) - p[None]), axis=0
  )
  np.testing.assert_allclose(
    beta * (p * weights) @ gradients, policy_gradient, atol=1e-4, rtol=1e-3
  )


def test_dense_kld_tends_to_the_policy_gradient(float64):
  """β∇ → −p ⊙ A as β → ∞, for zero-mean A."""
  logits, p = _policy()
  advantage = jnp.asarray(np.random.default_rng(1).normal(size=5))
  advantage -= p @ advantage
  beta = 1e6
  target = targets.optimal_logits(logits, advantage, beta)
  gradient = jax.grad(losses.lco_kld_loss)(logits, target)
  np.testing.assert_allclose(beta * gradient, -p * advantage, atol=1e-5)


def test_sampled_mse_gradient_in_expectation(float64):
  """At z = z_old, E[∇] = −p ⊙ A / β."""
  logits, p = _policy()
  advantage = jnp.asarray(np.random.default_rng(1).normal(size=5))
  beta = 0.6

  def gradient(action, value):
    dense = advantages.sampled(value, action, 5)
    where = jax.nn.one_hot(action, 5, dtype=bool)
    target = targets.optimal_logits(logits, dense, beta)
    return jax.grad(losses.lco_mse_loss)(logits, target, where)

  gradients = jax.vmap(gradient)(jnp.arange(5), advantage)
  np.testing.assert_allclose(p @ gradients, -p * advantage / beta, atol=1e-12)


def test_anchoring_to_the_current_logits_has_no_fixed_point(float64):
  """The ablation's gradient is the constant −A/β, wherever the policy is."""
  advantage, beta = jnp.asarray([1.0, -2.0, 0.5]), 0.5

  def gradient(logits):
    def loss(z):
      anchor = jax.lax.stop_gradient(z)
      return losses.lco_mse_loss(
        z, targets.optimal_logits(anchor, advantage, beta)
      )

    return jax.grad(loss)(logits)

  for seed in range(3):
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=3) * 5)
    np.testing.assert_allclose(gradient(logits), -advantage / beta, atol=1e-12)
