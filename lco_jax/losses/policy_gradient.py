"""Per-step policy-gradient losses, the baselines of LCO.

Hessians in the logits, with r = π(a)/π_old(a) and C(π) = diag π − π πᵀ:

    REINFORCE  −A log π(a)   H = A C(π): concave where A < 0
    PPO        −min(r A, clip(r, 1 − ε, 1 + ε) A)
               H = −A r [(e_a − π)(e_a − π)ᵀ − C(π)]: indefinite; 0 once clipped
    CISPO      −sg(min(r, 1 + ε)) A log π(a): REINFORCE with clipped weights
    GSPO       PPO with one ratio per sequence, exp of its mean log ratio
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, checks, numerics


@arguments.explain_errors
def reinforce_loss(
  log_prob: Array, advantage: Array, where: Array | None = None
) -> Array:
  """Score-function loss, −A log π(a), with expected gradient −∇J.

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    advantage: float[...], return minus baseline; held constant.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Williams 1992, REINFORCE.
  """
  log_prob, advantage = numerics.per_step(where, log_prob, advantage)
  return -jax.lax.stop_gradient(advantage) * log_prob


@arguments.explain_errors
def ppo_clip_loss(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  clip_low: float,
  clip_high: float,
  where: Array | None = None,
  dual_clip: float | None = None,
) -> Array:
  """PPO's clipped surrogate, −min(r A, clip(r, 1 − ε_low, 1 + ε_high) A).

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    old_log_prob: float[...], log π_old(a); held constant.
    advantage: float[...]; held constant.
    clip_low: ε_low ≥ 0; the ratio is clipped below at 1 − ε_low.
    clip_high: ε_high ≥ 0; the ratio is clipped above at 1 + ε_high.
    where: bool[...], steps that count; None means all.
    dual_clip: c > 1, which bounds the loss of a negative advantage by −c A: a
      ratio above c has no gradient; None for no bound (Ye et al. 2020,
      arXiv:1912.09729).

  Returns:
    float[...]; 0 where masked out.

  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
  """
  log_prob, old_log_prob, advantage = numerics.per_step(
    where, log_prob, old_log_prob, advantage
  )
  advantage = jax.lax.stop_gradient(advantage)
  ratio = jnp.exp(log_prob - jax.lax.stop_gradient(old_log_prob))
  clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
  surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
  if dual_clip is not None:
    bounded = jnp.maximum(surrogate, dual_clip * advantage)
    surrogate = jnp.where(advantage < 0, bounded, surrogate)
  return -surrogate


@arguments.explain_errors
def reinforce_dense_loss(
  logits: Array, dense_advantages: Array, where: Array | None = None
) -> Array:
  """Policy gradient with the advantages of all actions, −Σ_b π(b) A_b.

  Args:
    logits: float[..., A], policy logits z, in nats.
    dense_advantages: float[..., A]; held constant.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...]; 0 for a row with no legal action.

  Source: Ciosek and Whiteson 2018, arXiv:1801.03326 (expected gradients).
  """
  logits, advantages = numerics.float_arrays(logits, dense_advantages)
  chex.assert_equal_shape([logits, advantages])
  (advantages,) = numerics.zero_outside(where, advantages)
  probs = jnp.exp(numerics.log_softmax(logits, where))
  return -jnp.sum(probs * jax.lax.stop_gradient(advantages), axis=-1)


@arguments.explain_errors
def ppo_clip_dense_loss(
  logits: Array,
  old_logits: Array,
  dense_advantages: Array,
  clip_low: float,
  clip_high: float,
  where: Array | None = None,
) -> Array:
  """PPO's clipped surrogate with the advantages of all actions.

      −Σ_b π_old(b) min(r_b A_b, clip(r_b, 1 − ε_low, 1 + ε_high) A_b)

  Its value and gradient are the means of `ppo_clip_loss` over a ~ π_old.

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    dense_advantages: float[..., A]; held constant.
    clip_low: ε_low ≥ 0.
    clip_high: ε_high ≥ 0.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...]; 0 for a row with no legal action.

  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7, summed over actions.
  """
  logits, old_logits, advantages = numerics.float_arrays(
    logits, old_logits, dense_advantages
  )
  chex.assert_equal_shape([logits, old_logits, advantages])
  (advantages,) = numerics.zero_outside(where, advantages)
  log_probs, old_log_probs = (
    numerics.log_softmax(x, where)
    for x in (logits, jax.lax.stop_gradient(old_logits))
  )
  legal = jnp.isfinite(old_log_probs)
  each = ppo_clip_loss(
    log_probs, old_log_probs, advantages, clip_low, clip_high, legal
  )
  return jnp.sum(jnp.exp(old_log_probs) * each, axis=-1)


@arguments.explain_errors
def cispo_loss(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  clip_high: float,
  where: Array | None = None,
) -> Array:
  """REINFORCE with clipped, constant weights, −sg(min(r, 1 + ε)) A log π(a).

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    old_log_prob: float[...], log π_old(a); held constant.
    advantage: float[...]; held constant.
    clip_high: ε ≥ 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: MiniMax 2025, arXiv:2506.13585.
  """
  log_prob, old_log_prob, advantage = numerics.per_step(
    where, log_prob, old_log_prob, advantage
  )
  weight = jnp.minimum(jnp.exp(log_prob - old_log_prob), 1.0 + clip_high)
  return -jax.lax.stop_gradient(weight * advantage) * log_prob


@arguments.explain_errors
def sequence_log_prob_ratio(
  log_prob: Array, old_log_prob: Array, where: Array
) -> Array:
  """GSPO's log ratio: the mean of log r over each sequence's tokens.

  Args:
    log_prob: float[..., T], log π(a) of the sampled tokens, in nats.
    old_log_prob: float[..., T]; held constant.
    where: bool[..., T], tokens that count.

  Returns:
    float[..., T], equal for all tokens of a sequence; 0 for an empty sequence.

  Source: Zheng et al. 2025, arXiv:2507.18071, eq. 7.
  """
  log_prob, old_log_prob = numerics.per_step(where, log_prob, old_log_prob)
  log_ratio = log_prob - jax.lax.stop_gradient(old_log_prob)
  count = jnp.sum(where, axis=-1, keepdims=True, dtype=log_ratio.dtype)
  mean = jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(count, 1.0)
  return jnp.broadcast_to(mean, log_ratio.shape)


@arguments.explain_errors
def stale_weight(log_ratio: Array, correction: str, bound: float) -> Array:
  """Weight of a sample of another policy than the one that learns.

      none       1
      truncated  min(r, c)
      masked     1 where 1/c ≤ r ≤ c, else 0

  Truncation bounds the variance and keeps a bias; masking leaves out samples
  that the policy has moved away from.

  Args:
    log_ratio: float[...], log r = log π(a) − log p(a), π at the beginning of
      the update, p the policy that sampled; nats.
    correction: "none", "truncated" or "masked".
    bound: c ≥ 1.

  Returns:
    float[...], no gradient.

  Raises:
    ValueError: if the correction is unknown.

  Source: Espeholt et al. 2018, arXiv:1802.01561 (truncated); masked importance
    sampling as in asynchronous training of language models.
  """
  checks.check_choice("correction", correction, ("none", "truncated", "masked"))
  (log_ratio,) = numerics.float_arrays(jax.lax.stop_gradient(log_ratio))
  if correction == "none":
    return jnp.ones_like(log_ratio)
  limit = jnp.log(jnp.asarray(bound, log_ratio.dtype))
  if correction == "truncated":
    return jnp.exp(jnp.minimum(log_ratio, limit))
  return (jnp.abs(log_ratio) <= limit).astype(log_ratio.dtype)
