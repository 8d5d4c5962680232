import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import losses
from tests import oracles


def _logits(seed, shape=(7, 4)):
  return np.random.default_rng(seed).normal(size=shape) * 2


def test_entropy_against_an_oracle(float64):
  z = _logits(0)

  def oracle(x):
    p = oracles.softmax(x)
    return -(p * np.log(p)).sum(-1)

  np.testing.assert_allclose(losses.entropy(jnp.asarray(z)), oracle(z))
  np.testing.assert_allclose(
    jax.grad(lambda x: jnp.sum(losses.entropy(x)))(jnp.asarray(z)),
    oracles.gradient(oracle, z),
    atol=1e-8,
  )
  np.testing.assert_allclose(losses.entropy(jnp.zeros(5)), np.log(5))


def test_kl_against_an_oracle(float64):
  p, q = _logits(0), _logits(1)
  oracle = lambda x, y: oracles.kl(oracles.softmax(x), oracles.softmax(y))
  arrays = jnp.asarray(p), jnp.asarray(q)
  np.testing.assert_allclose(losses.kl_divergence(*arrays), oracle(p, q))
  grad_p, grad_q = jax.grad(
    lambda x, y: jnp.sum(losses.kl_divergence(x, y)), argnums=(0, 1)
  )(*arrays)
  expected_p = oracles.gradient(lambda x: oracle(x, q), p)
  expected_q = oracles.gradient(lambda y: oracle(p, y), q)
  np.testing.assert_allclose(grad_p, expected_p, atol=1e-8)
  np.testing.assert_allclose(grad_q, expected_q, atol=1e-8)


def test_estimators_by_their_formulas(float64):
  log_p, log_q = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9)))
  d = log_q - log_p
  np.testing.assert_allclose(losses.kl_estimate_k1(log_p, log_q), -d)
  np.testing.assert_allclose(losses.kl_estimate_k2(log_p, log_q), d**2 / 2)
  np.testing.assert_allclose(
    losses.kl_estimate_k3(log_p, log_q), np.exp(d) - d - 1
  )


def test_k1_and_k3_are_unbiased_and_k2_is_not(float64):
  """Expectations are exact: sums over actions weighted by p."""
  p, q = jnp.asarray(_logits(0)), jnp.asarray(_logits(1))
  log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
  exact = losses.kl_divergence(p, q)
  expectation = lambda k: jnp.sum(jnp.exp(log_p) * k(log_p, log_q), axis=-1)
  np.testing.assert_allclose(expectation(losses.kl_estimate_k1), exact)
  np.testing.assert_allclose(expectation(losses.kl_estimate_k3), exact)
  assert not np.allclose(expectation(losses.kl_estimate_k2), exact, rtol=0.01)
  assert (losses.kl_estimate_k3(log_p, log_q) >= 0).all()


def test_penalties_are_the_estimators_with_bounds(float64):
  log_p, log_q = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9)))
  for name, estimate in (
    ("k1", losses.kl_estimate_k1),
    ("k2", losses.kl_estimate_k2),
    ("k3", losses.kl_estimate_k3),
  ):
    np.testing.assert_allclose(
      losses.kl_penalty(log_p, log_q, name), estimate(log_p, log_q)
    )
  # Far apart: d is clipped to ±20, k3 to 10, and there is no gradient.
  zero, far = jnp.zeros(2), jnp.asarray([-90.0, 90.0])
  for name, expected in (
    ("k1", [20.0, -20.0]),
    ("k2", [200.0, 200.0]),
    ("k3", [10.0, 10.0]),
  ):
    value, slope = jax.value_and_grad(
      lambda x, name=name: jnp.sum(losses.kl_penalty(x, far, name))
    )(zero)
    np.testing.assert_allclose(
      losses.kl_penalty(zero, far, name), expected, rtol=1e-12
    )
    np.testing.assert_array_equal(slope, 0.0)
    assert np.isfinite(value)
  with pytest.raises(ValueError, match="estimator: unknown 'k4'"):
    losses.kl_penalty(zero, far, "k4")


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_expected_gradients_of_penalties(name, float64):
  """Of samples of π: none, that of KL(π ‖ ref), and that of KL(ref ‖ π)."""
  z, ref = jnp.asarray(_logits(0)) / 3, jnp.asarray(_logits(1)) / 3
  weights = jax.nn.softmax(z)

  def mean(x):
    each = losses.kl_penalty(
      jax.nn.log_softmax(x), jax.nn.log_softmax(ref), name
    )
    return jnp.sum(weights * each)

  exact = {
    "k1": lambda x: 0.0 * jnp.sum(x),
    "k2": lambda x: jnp.sum(losses.kl_divergence(x, ref)),
    "k3": lambda x: jnp.sum(losses.kl_divergence(ref, x)),
  }[name]
  np.testing.assert_allclose(jax.grad(mean)(z), jax.grad(exact)(z), atol=1e-10)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_nothing_under_a_mask_influences_anything(junk):
  where = jnp.array([True, True, False])
  clean = jnp.array([1.0, -0.5, 0.0])
  dirty = clean.at[2].set(junk)
  other = jnp.array([0.3, 0.1, 0.0])
  for function in (
    lambda x: losses.entropy(x, where),
    lambda x: losses.kl_divergence(x, other, where),
    lambda x: losses.kl_divergence(other, x, where),
    lambda x: losses.kl_estimate_k1(x, other, where),
    lambda x: losses.kl_estimate_k2(x, other, where),
    lambda x: losses.kl_estimate_k3(x, other, where),
  ):
    run = jax.value_and_grad(lambda x, f=function: jnp.sum(f(x)))
    (value, gradient), expected = run(dirty), run(clean)
    assert value == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


def test_fully_masked_rows_are_zero_with_zero_gradient():
  where = jnp.zeros(3, bool)
  for function in (
    lambda x: losses.entropy(x, where),
    lambda x: losses.kl_divergence(x, x, where),
  ):
    value, gradient = jax.value_and_grad(function)(jnp.array([1.0, jnp.nan, 2]))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
