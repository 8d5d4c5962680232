"""Entropy, exact KL divergence and three sampled KL estimators.

The estimators take actions a sampled from p, with d = log q(a) − log p(a):

    k1 = −d             unbiased, high variance, may be negative
    k2 = ½ d²           biased, low variance
    k3 = e^d − d − 1    unbiased, low variance, never negative

Source: Schulman 2020, "Approximating KL divergence".
"""

import chex
import jax.numpy as jnp
from jax import Array

from lco_jax import numerics


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


def _log_ratio(
  log_prob_p: Array, log_prob_q: Array, where: Array | None
) -> Array:
  """d = log q(a) − log p(a), 0 where masked out."""
  log_prob_p, log_prob_q = numerics.per_step(where, log_prob_p, log_prob_q)
  return log_prob_q - log_prob_p
