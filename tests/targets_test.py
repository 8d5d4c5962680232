import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import advantages, targets
from tests import oracles


def _random(*shape, seed=0, scale=2.0):
  return np.random.default_rng(seed).normal(size=shape) * scale


def test_optimal_policy_maximises_the_regularised_objective(float64):
  """No other policy of a dense sample scores higher, and q reaches β log Z."""
  rng = np.random.default_rng(0)
  z, advantage, beta = rng.normal(size=5), rng.normal(size=5), 0.7
  p = oracles.softmax(z)

  def objective(pi):
    return pi @ advantage - beta * oracles.kl(pi, p)

  q = np.exp(
    targets.optimal_log_probs(jnp.asarray(z), jnp.asarray(advantage), beta)
  )
  best = beta * np.log(np.sum(p * np.exp(advantage / beta)))
  np.testing.assert_allclose(objective(q), best, rtol=1e-12)
  others = rng.dirichlet(np.ones(5), size=1000)
  assert max(objective(pi) for pi in others) < best


def test_gauge_and_baseline_do_not_change_the_target(float64):
  z, advantage = _random(4, 3), _random(4, 3, seed=1)
  base = targets.optimal_log_probs(jnp.asarray(z), jnp.asarray(advantage), 0.5)
  moved = targets.optimal_log_probs(
    jnp.asarray(z + 3.0), jnp.asarray(advantage - 1.5), 0.5
  )
  np.testing.assert_allclose(moved, base, atol=1e-12)


def test_beta_broadcasts():
  z, advantage = jnp.zeros((2, 3)), jnp.ones((2, 3))
  for beta in (2.0, jnp.float32(2.0), jnp.full((2, 1), 2.0), jnp.full(3, 2.0)):
    logits = targets.optimal_logits(z, advantage, beta)
    np.testing.assert_allclose(logits, 0.5)


@pytest.mark.parametrize("beta", [0, -1, 0.0, float("nan"), float("inf")])
def test_beta_must_be_positive_and_finite(beta):
  z = jnp.zeros((2, 3))
  for bad in (beta, np.float32(beta), np.full((2, 1), beta)):
    with pytest.raises(ValueError, match="beta"):
      targets.optimal_logits(z, z, bad)
    with pytest.raises(ValueError, match="beta"):
      targets.optimal_log_probs(z, z, bad)


def test_wrong_shapes_and_dtypes_raise_at_trace_time():
  z = jnp.zeros((2, 3))
  for bad in (jnp.zeros((2, 4)), jnp.zeros(3), jnp.zeros((2, 3), jnp.int32)):
    with pytest.raises(AssertionError):
      jax.jit(lambda a, b: targets.optimal_logits(a, b, 1.0))(z, bad)
  with pytest.raises(AssertionError):
    targets.optimal_log_probs(z, z, 1.0, jnp.zeros((2, 3)))


def test_illegal_actions_get_no_mass_and_change_nothing():
  where = jnp.array([True, False, True])
  for junk in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
    log_probs = targets.optimal_log_probs(
      jnp.array([0.0, junk, 1.0]), jnp.array([1.0, junk, 0.0]), 1.0, where
    )
    np.testing.assert_allclose(
      log_probs, [-np.log(2), -np.inf, -np.log(2)], rtol=1e-6
    )


def test_sign_dependent_beta():
  beta = targets.sign_dependent_beta(jnp.array([1.0, 0.0, -1.0]), 2.0, 100.0)
  np.testing.assert_allclose(beta, [[2.0], [200.0], [200.0]])
  with pytest.raises(ValueError, match="beta"):
    targets.sign_dependent_beta(jnp.ones(1), 1.0, 0.0)


def _ratio_oracle(z, action, ratio, low, high):
  """Section by section, one row at a time."""
  p = oracles.softmax(z)
  q = np.empty_like(p)
  for row, a in enumerate(action):
    scaled = ratio * p[row, a]
    if ratio < 1 and scaled < low:
      scaled = p[row, a]
    if ratio > 1:
      scaled = min(scaled, high)
    q[row] = p[row] * (1 - scaled) / (1 - p[row, a])
    q[row, a] = scaled
  return q


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.2, 1.8])
def test_ratio_target_against_an_oracle(ratio, float64):
  z, action = _random(50, 4), np.random.default_rng(1).integers(0, 4, 50)
  log_probs = targets.ratio_log_probs(
    jnp.asarray(z), jnp.asarray(action), ratio, 0.3, 0.95
  )
  expected = _ratio_oracle(z, action, ratio, 0.3, 0.95)
  np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-10)
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-12)


def test_ratio_target_cap_may_spare_actions_above_it(float64):
  z = jnp.array([[0.0, 6.0]])
  prob = jax.nn.softmax(z)[:, 1]
  cap = jnp.maximum(0.99, prob)
  spared = targets.ratio_log_probs(z, jnp.array([1]), 1.8, 0.8, cap)
  np.testing.assert_allclose(np.exp(spared[:, 1]), prob, rtol=1e-12)
  lowered = targets.ratio_log_probs(z, jnp.array([1]), 1.8, 0.8, 0.99)
  np.testing.assert_allclose(np.exp(lowered[:, 1]), 0.99, rtol=1e-12)


def test_one_known_action_gives_the_same_target_sparse_or_completed(float64):
  """Equations: they differ only through the completion's floor, p ≤ .9."""
  z, action = _random(20, 5, scale=0.5), np.arange(20) % 5
  advantage = _random(20, seed=3)
  sparse = advantages.sampled(jnp.asarray(advantage), jnp.asarray(action), 5)
  completed = advantages.zero_mean_completion(
    jnp.asarray(z),
    jnp.asarray(advantage)[:, None],
    jnp.asarray(action)[:, None],
  )
  np.testing.assert_allclose(
    targets.optimal_log_probs(jnp.asarray(z), completed, 0.7),
    targets.optimal_log_probs(jnp.asarray(z), sparse, 0.7),
    atol=1e-12,
  )
