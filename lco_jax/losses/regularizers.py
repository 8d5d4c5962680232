"""Entropy, exact KL divergence and three sampled KL estimators.

The estimators take actions a sampled from p, with d = log q(a) − log p(a):

    k1 = −d             unbiased, high variance, may be negative
    k2 = ½ d²           biased, low variance
    k3 = e^d − d − 1    unbiased, low variance, never negative

Source: Schulman 2020, "Approximating KL divergence".
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, checks, numerics


@arguments.explain_errors
def entropy(logits: Array, where: Array | None = None) -> Array:
  """Shannon entropy, −Σₐ π(a) log π(a).

  Args:
    logits: float[..., A], in nats, any additive offset.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, in [0, log A]; 0 for a row with no legal action.
  """
  (logits,) = numerics.float_arrays(logits)
  log_probs = numerics.log_softmax(logits, where)
  finite = jnp.where(jnp.isfinite(log_probs), log_probs, 0.0)
  return -jnp.sum(jnp.exp(log_probs) * finite, axis=-1)


@arguments.explain_errors
def kl_divergence(
  logits_p: Array, logits_q: Array, where: Array | None = None
) -> Array:
  """Exact KL(p ‖ q) of two categorical policies; differentiable in both.

  Args:
    logits_p: float[..., A], in nats, any additive offset.
    logits_q: float[..., A], likewise.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, ≥ 0 up to rounding; 0 for a row with no legal action.
  """
  logits_p, logits_q = numerics.float_arrays(logits_p, logits_q)
  chex.assert_equal_shape([logits_p, logits_q])
  log_p = numerics.log_softmax(logits_p, where)
  log_q = numerics.log_softmax(logits_q, where)
  support = jnp.isfinite(log_p)
  difference = jnp.where(support, log_p, 0.0) - jnp.where(support, log_q, 0.0)
  return jnp.sum(jnp.exp(log_p) * difference, axis=-1)


@arguments.explain_errors
def kl_estimate_k1(
  log_prob_p: Array, log_prob_q: Array, where: Array | None = None
) -> Array:
  """k1 = −d, an estimate of KL(p ‖ q) from actions sampled from p.

  Args:
    log_prob_p: float[...], log p(a) of the sampled actions.
    log_prob_q: float[...], log q(a) of the same actions.
    where: bool[...], samples that count; None means all.

  Returns:
    float[...], nats; 0 where masked out.
  """
  return -_log_ratio(log_prob_p, log_prob_q, where)


@arguments.explain_errors
def kl_estimate_k2(
  log_prob_p: Array, log_prob_q: Array, where: Array | None = None
) -> Array:
  """k2 = ½ d², an estimate of KL(p ‖ q) from actions sampled from p.

  Args:
    log_prob_p: float[...], log p(a) of the sampled actions.
    log_prob_q: float[...], log q(a) of the same actions.
    where: bool[...], samples that count; None means all.

  Returns:
    float[...], nats, ≥ 0; 0 where masked out.
  """
  return 0.5 * jnp.square(_log_ratio(log_prob_p, log_prob_q, where))


@arguments.explain_errors
def kl_estimate_k3(
  log_prob_p: Array, log_prob_q: Array, where: Array | None = None
) -> Array:
  """k3 = e^d − d − 1, an estimate of KL(p ‖ q) from actions sampled from p.

  Args:
    log_prob_p: float[...], log p(a) of the sampled actions.
    log_prob_q: float[...], log q(a) of the same actions.
    where: bool[...], samples that count; None means all.

  Returns:
    float[...], nats, ≥ 0; 0 where masked out.
  """
  d = _log_ratio(log_prob_p, log_prob_q, where)
  return jnp.expm1(d) - d


@arguments.explain_errors
def kl_penalty(
  log_prob: Array,
  reference_log_prob: Array,
  estimator: str,
  where: Array | None = None,
) -> Array:
  """Sampled penalty for leaving a reference policy, with bounded terms.

  d = log ref(a) − log π(a) is clipped to ±20, and k3 to 10: e^d overflows at
  88 and has a gradient of −22,025 at 10. Of samples of π, the expected gradient

      k1   is 0 as a loss; as part of the reward it is that of KL(π ‖ ref)
      k2   is that of KL(π ‖ ref)
      k3   is that of KL(ref ‖ π)

  Args:
    log_prob: float[...], log π(a) of actions sampled from π.
    reference_log_prob: float[...], log ref(a); held constant.
    estimator: "k1", "k2" or "k3".
    where: bool[...], samples that count; None means all.

  Returns:
    float[...], nats; 0 where masked out.

  Raises:
    ValueError: if the estimator is unknown.

  Source: Schulman 2020, "Approximating KL divergence"; gradients derived; the
    bounds are those of verl.
  """
  checks.check_choice("estimator", estimator, ("k1", "k2", "k3"))
  reference_log_prob = jax.lax.stop_gradient(reference_log_prob)
  d = jnp.clip(_log_ratio(log_prob, reference_log_prob, where), -20.0, 20.0)
  if estimator == "k1":
    return -d
  if estimator == "k2":
    return 0.5 * jnp.square(d)
  return jnp.minimum(jnp.expm1(d) - d, 10.0)


def _log_ratio(
  log_prob_p: Array, log_prob_q: Array, where: Array | None
) -> Array:
  """d = log q(a) − log p(a), 0 where masked out."""
  log_prob_p, log_prob_q = numerics.per_step(where, log_prob_p, log_prob_q)
  return log_prob_q - log_prob_p
