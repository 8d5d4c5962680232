import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import diagnostics, losses, numerics, targets
from tests import oracles


def _ppo(logits, old_logits, action, advantage, epsilon=0.2):
  return losses.ppo_clip_loss(
    numerics.action_log_prob(logits, action),
    numerics.action_log_prob(old_logits, action),
    advantage,
    epsilon,
    epsilon,
  )


def _reinforce(logits, action, advantage):
  return losses.reinforce_loss(
    numerics.action_log_prob(logits, action), advantage
  )


def _spectrum(loss, logits):
  hessian = jax.jit(lambda z: diagnostics.logit_hessian(loss, z))(logits)
  return np.linalg.eigvalsh(hessian)


def _ppo_oracle(log_prob, old, advantage, low, high):
  ratio = np.exp(log_prob - old)
  clipped = np.clip(ratio, 1 - low, 1 + high)
  return -np.minimum(ratio * advantage, clipped * advantage)


def test_ppo_value_and_gradient_against_an_oracle(float64):
  rng = np.random.default_rng(0)
  log_prob, old, advantage = rng.normal(size=(3, 200)) * 0.3
  actual, gradient = jax.value_and_grad(
    lambda x: jnp.sum(
      losses.ppo_clip_loss(
        x, jnp.asarray(old), jnp.asarray(advantage), 0.2, 0.28
      )
    )
  )(jnp.asarray(log_prob))
  oracle = lambda x: _ppo_oracle(x, old, advantage, 0.2, 0.28)
  np.testing.assert_allclose(actual, oracle(log_prob).sum(), rtol=1e-12)
  np.testing.assert_allclose(
    gradient, oracles.gradient(oracle, log_prob), atol=1e-8
  )


def test_reinforce_value_and_gradient(float64):
  rng = np.random.default_rng(0)
  log_prob, advantage = jnp.asarray(rng.normal(size=(2, 20)))
  loss, pull = jax.vjp(lambda x: losses.reinforce_loss(x, advantage), log_prob)
  np.testing.assert_allclose(loss, -advantage * log_prob)
  np.testing.assert_allclose(pull(jnp.ones(20))[0], -advantage)


def test_clip_is_one_sided():
  """A worse move is never clipped: only moving further the same way is."""
  old = jnp.zeros(4)
  log_prob = jnp.log(jnp.array([2.0, 0.5, 2.0, 0.5]))
  advantage = jnp.array([1.0, 1.0, -1.0, -1.0])
  loss = losses.ppo_clip_loss(log_prob, old, advantage, 0.2, 0.3)
  np.testing.assert_allclose(loss, [-1.3, -0.5, 2.0, 0.8], rtol=1e-6)


def test_advantage_and_old_log_prob_get_no_gradient():
  args = (jnp.array([-0.5]), jnp.array([-0.6]), jnp.array([1.0]))
  gradients = jax.grad(
    lambda *a: jnp.sum(losses.ppo_clip_loss(*a, 0.2, 0.2)), argnums=(1, 2)
  )(*args)
  np.testing.assert_array_equal(gradients, 0.0)
  gradient = jax.grad(lambda a: jnp.sum(losses.reinforce_loss(args[0], a)))(
    args[2]
  )
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
  ("policy", "advantage", "expected"),
  [
    ((0.2, 0.8), 1.0, (-0.96, 0.0)),
    ((0.8, 0.2), -1.0, (-0.24, 0.0)),
    ((0.2, 0.5, 0.3), -1.0, (-0.370, 0.0, 0.730)),
  ],
)
def test_ppo_is_not_convex_on_policy(policy, advantage, expected, float64):
  logits = jnp.log(jnp.array(policy))
  loss = lambda z: _ppo(z, logits, jnp.array(0), jnp.array(advantage))
  np.testing.assert_allclose(_spectrum(loss, logits), expected, atol=5e-4)


def test_ppo_hessian_formula(float64):
  """H = −A r [(e_a − π)(e_a − π)ᵀ − C(π)], off-policy but unclipped."""
  rng = np.random.default_rng(0)
  old, advantage = rng.normal(size=4), 1.3
  logits = old + 0.01 * rng.normal(size=4)
  pi = oracles.softmax(logits)
  ratio = pi[1] / oracles.softmax(old)[1]
  direction = np.eye(4)[1] - pi
  covariance = np.diag(pi) - np.outer(pi, pi)
  loss = lambda z: _ppo(z, jnp.asarray(old), jnp.array(1), jnp.array(advantage))
  np.testing.assert_allclose(
    diagnostics.logit_hessian(loss, jnp.asarray(logits)),
    -advantage * ratio * (np.outer(direction, direction) - covariance),
    atol=1e-12,
  )


@pytest.mark.parametrize(
  ("advantage", "probs"), [(1.0, (0.13, 0.5, 0.9)), (-1.0, (0.07, 0.01))]
)
def test_ppo_plateau_is_flat_and_not_the_optimum(advantage, probs, float64):
  """p(a) = .1, ε = .2: no gradient beyond .12, although q(a) = .232 (β = 1)."""
  old = jnp.log(jnp.array([0.1, 0.9]))
  loss = lambda z: _ppo(z, old, jnp.array(0), jnp.array(advantage))
  for prob in probs:
    logits = jnp.log(jnp.array([prob, 1 - prob]))
    np.testing.assert_array_equal(jax.grad(loss)(logits), 0.0)
    np.testing.assert_array_equal(diagnostics.logit_hessian(loss, logits), 0.0)
  log_q = targets.optimal_log_probs(old, jnp.array([1.0, 0.0]), 1.0)
  np.testing.assert_allclose(jnp.exp(log_q[0]), 0.232, atol=5e-4)


def test_reinforce_is_convex_for_good_and_concave_for_bad(float64):
  """H = A C(π)."""
  logits = jnp.asarray(np.random.default_rng(0).normal(size=5))
  pi = oracles.softmax(np.asarray(logits))
  covariance = np.diag(pi) - np.outer(pi, pi)
  for advantage in (2.0, -2.0):
    loss = lambda z, a=advantage: _reinforce(z, jnp.array(2), jnp.array(a))
    np.testing.assert_allclose(
      diagnostics.logit_hessian(loss, logits),
      advantage * covariance,
      atol=1e-12,
    )


def test_reinforce_is_unbounded_below_for_bad(float64):
  loss = lambda z: _reinforce(z, jnp.array(0), jnp.array(-1.0))
  assert loss(jnp.array([-1e3, 0.0])) == -1e3


def test_reverse_kl_is_not_convex(float64):
  """π = (.95, .05) against a uniform target: −.157."""
  logits = jnp.log(jnp.array([0.95, 0.05]))
  loss = lambda z: losses.kl_divergence(z, jnp.zeros(2))
  np.testing.assert_allclose(_spectrum(loss, logits)[0], -0.157, atol=5e-4)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_nothing_under_a_mask_influences_anything(junk):
  where = jnp.array([True, False])
  clean = jnp.array([-0.5, 0.0])
  dirty = clean.at[1].set(junk)
  ppo = lambda a, b, c: losses.ppo_clip_loss(a, b, c, 0.2, 0.2, where)
  reinforce = lambda a, _, c: losses.reinforce_loss(a, c, where)
  for loss in (ppo, reinforce):
    run = jax.value_and_grad(
      lambda *a, loss=loss: jnp.sum(loss(*a)), argnums=(0, 1, 2)
    )
    expected, expected_gradients = run(clean, clean, clean)
    value, gradients = run(dirty, dirty, dirty)
    assert value == expected
    np.testing.assert_array_equal(gradients, expected_gradients)


def test_wrong_shapes_and_dtypes_raise():
  x = jnp.zeros(3)
  with pytest.raises(AssertionError):
    losses.ppo_clip_loss(x, x, jnp.zeros(2), 0.2, 0.2)
  with pytest.raises(AssertionError):
    losses.ppo_clip_loss(x, x, jnp.zeros(3, jnp.int32), 0.2, 0.2)
  with pytest.raises(AssertionError):
    losses.reinforce_loss(x, jnp.zeros((3, 1)))


def test_saturation_starves_ppo_and_not_kld(float64):
  """p = .5, A = 1, π(a) = .001: .002 for PPO, .730 for LCO-KLD at β = 1."""
  old = jnp.zeros(2)
  logits = jnp.log(jnp.array([0.001, 0.999]))
  advantage = jnp.array(1.0)
  ppo = jax.grad(lambda z: _ppo(z, old, jnp.array(0), advantage))(logits)
  np.testing.assert_allclose(np.abs(ppo[0]), 0.002, atol=5e-4)
  target = targets.optimal_logits(old, jnp.array([1.0, 0.0]), 1.0)
  kld = jax.grad(losses.lco_kld_loss)(logits, target)
  np.testing.assert_allclose(np.abs(kld[0]), 0.730, atol=5e-4)


def test_dual_clip_against_an_oracle(float64):
  """max(min(r A, clip(r) A), c A) where A < 0; no gradient beyond c."""
  rng = np.random.default_rng(0)
  log_prob, old, advantage = (jnp.asarray(x) for x in rng.normal(size=(3, 500)))
  ratio = np.exp(np.asarray(log_prob - old))
  a = np.asarray(advantage)
  surrogate = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
  expected = -np.where(a < 0, np.maximum(surrogate, 3 * a), surrogate)
  loss = lambda x: losses.ppo_clip_loss(x, old, advantage, 0.2, 0.2, None, 3.0)
  np.testing.assert_allclose(loss(log_prob), expected, rtol=1e-12)
  slope = jax.grad(lambda x: jnp.sum(loss(x)))(log_prob)
  beyond = (a < 0) & (ratio > 3)
  assert beyond.sum() > 10
  np.testing.assert_array_equal(np.asarray(slope)[beyond], 0.0)
  plain = jax.grad(
    lambda x: jnp.sum(losses.ppo_clip_loss(x, old, advantage, 0.2, 0.2))
  )(log_prob)
  np.testing.assert_array_equal(slope[~beyond], plain[~beyond])


def _mean_over_actions(loss, old):
  """Σ_a p(a) loss of action a, by enumeration."""
  actions = jnp.arange(old.shape[-1])
  each = jax.vmap(lambda a: loss(jnp.full(len(old), a)), out_axes=1)(actions)
  return jnp.sum(jax.nn.softmax(old) * each, axis=-1)


def test_ppo_of_all_actions_is_the_mean_over_actions(float64):
  rng = np.random.default_rng(0)
  z, old, dense = (jnp.asarray(x) for x in rng.normal(size=(3, 40, 5)))
  z = old + 0.3 * z

  def mean(z):
    def one(action):
      pick = lambda x: jnp.take_along_axis(x, action[:, None], -1)[:, 0]
      return losses.ppo_clip_loss(
        pick(jax.nn.log_softmax(z)),
        pick(jax.nn.log_softmax(old)),
        pick(dense),
        0.1,
        0.2,
      )

    return _mean_over_actions(one, old)

  whole = lambda z: losses.ppo_clip_dense_loss(z, old, dense, 0.1, 0.2)
  np.testing.assert_allclose(whole(z), mean(z), rtol=1e-10)
  slopes = [jax.grad(lambda z, f=f: jnp.sum(f(z)))(z) for f in (whole, mean)]
  np.testing.assert_allclose(*slopes, atol=1e-12)


def test_reinforce_of_all_actions_is_the_policy_gradient(float64):
  rng = np.random.default_rng(0)
  z, dense = (jnp.asarray(x) for x in rng.normal(size=(2, 40, 5)))
  probs = np.asarray(jax.nn.softmax(z))
  np.testing.assert_allclose(
    losses.reinforce_dense_loss(z, dense),
    -(probs * np.asarray(dense)).sum(-1),
    rtol=1e-12,
  )
  slope = jax.grad(lambda z: jnp.sum(losses.reinforce_dense_loss(z, dense)))(z)
  mean = (probs * np.asarray(dense)).sum(-1, keepdims=True)
  np.testing.assert_allclose(slope, -probs * (dense - mean), atol=1e-12)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_nothing_under_a_mask_influences_losses_of_all_actions(junk):
  rng = np.random.default_rng(0)
  z, old, dense = jnp.asarray(rng.normal(size=(3, 3, 4)), jnp.float32)
  where = jnp.array([[True, True, False, True]] * 2 + [[False] * 4])
  for loss in (
    lambda z, old, a: losses.ppo_clip_dense_loss(z, old, a, 0.2, 0.2, where),
    lambda z, old, a: losses.reinforce_dense_loss(z, a, where),
  ):
    run = jax.value_and_grad(
      lambda *x, f=loss: jnp.sum(f(*x)), argnums=(0, 1, 2)
    )
    clean, slopes = run(z, old, dense)
    dirty = [x.at[:, 2].set(junk).at[2].set(junk) for x in (z, old, dense)]
    value, dirty_slopes = run(*dirty)
    assert value == clean
    for own, expected in zip(dirty_slopes, slopes, strict=True):
      np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(slopes[0][:, 2], 0.0)
    np.testing.assert_array_equal(slopes[1], 0.0)
    np.testing.assert_array_equal(slopes[2], 0.0)
