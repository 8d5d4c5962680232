"""Other per-step losses that move the policy towards π* ∝ π_old exp(A/β).

    MDPO   −r A + β (KL of π from π_old, estimated)   reverse KL, same optimum
    AWR    −min(e^{A/β}, w) log π(a)                  weighted likelihood
    APA    (A − β (log π(a) − log π_old(a)))²         square in log-probability
    CMPO   −A log π(a) + λ KL(q ‖ π)                 q ∝ π_old e^{clip(A, ±1)}
    V-MPO  −ψ log π(a) + λ KL(π_old ‖ π)             ψ ∝ e^{A/η}, better half

APA is not convex in the logits; see its tests.
"""

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, numerics
from lco_jax.losses import lco


@arguments.explain_errors
def mdpo_loss(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  beta: float,
  where: Array | None = None,
) -> Array:
  """Mirror descent, −r A + β k, where k estimates KL(π ‖ π_old).

  k = r log r − r + 1 is the k3 estimator weighted by r, because samples come
  from π_old. It is 0 at r = 1, positive elsewhere, and unbiased.

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    old_log_prob: float[...], log π_old(a); held constant.
    advantage: float[...]; held constant.
    beta: KL strength, > 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Tomar et al. 2020, arXiv:2005.09814.
  """
  log_ratio, advantage = _log_ratio(log_prob, old_log_prob, advantage, where)
  ratio = jnp.exp(log_ratio)
  return -ratio * advantage + beta * (ratio * log_ratio - jnp.expm1(log_ratio))


@arguments.explain_errors
def awr_loss(
  log_prob: Array,
  advantage: Array,
  beta: float,
  max_weight: float,
  where: Array | None = None,
) -> Array:
  """Advantage-weighted regression, −min(e^{A/β}, w) log π(a).

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    advantage: float[...]; held constant.
    beta: temperature, > 0.
    max_weight: w, > 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Peng et al. 2019, arXiv:1910.00177.
  """
  log_prob, advantage = numerics.per_step(where, log_prob, advantage)
  # Clip the exponent, not the weight: exp could overflow.
  exponent = jnp.minimum(advantage / beta, jnp.log(max_weight))
  return -jax.lax.stop_gradient(jnp.exp(exponent)) * log_prob


@arguments.explain_errors
def apa_loss(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  beta: float,
  where: Array | None = None,
) -> Array:
  """Advantage-induced policy alignment, (A − β log r)².

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    old_log_prob: float[...], log π_old(a); held constant.
    advantage: float[...]; held constant.
    beta: KL strength, > 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...], ≥ 0; 0 where masked out.

  Source: Zhu et al. 2023, arXiv:2306.02231.
  """
  log_ratio, advantage = _log_ratio(log_prob, old_log_prob, advantage, where)
  return jnp.square(advantage - beta * log_ratio)


@arguments.explain_errors
def cmpo_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  advantage: Array,
  coefficient: float,
  where: Array | None = None,
) -> Array:
  """Clipped MPO: policy gradient plus forward KL from a clipped target.

      −A log π(a) + λ KL(q ‖ π),  q ∝ π_old e^{clip(A, −1, 1)}

  Only the sampled action's advantage is known; q uses 0 for the others.

  Args:
    logits: float[..., A], policy logits.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled actions.
    advantage: float[...]; held constant. Normalise it to unit variance, because
      it is clipped at ±1.
    coefficient: λ, ≥ 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Hessel et al. 2021 (Muesli), arXiv:2104.06159.
  """
  (advantage,) = numerics.per_step(where, advantage)
  advantage = jax.lax.stop_gradient(advantage)
  if where is not None:
    logits, old_logits = (
      jnp.where(where[..., None], x, 0.0) for x in (logits, old_logits)
    )
  logits, old_logits = numerics.float_arrays(logits, old_logits)
  log_prob = numerics.action_log_prob(logits, actions)
  chosen = jax.nn.one_hot(actions, logits.shape[-1], dtype=bool)
  shift = jnp.where(chosen, jnp.clip(advantage, -1.0, 1.0)[..., None], 0.0)
  regularizer = lco.lco_kld_loss(logits, old_logits + shift)
  loss = coefficient * regularizer - advantage * log_prob
  return loss if where is None else jnp.where(where, loss, 0.0)


@arguments.explain_errors
def vmpo_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  weight: Array,
  coefficient: float,
  where: Array | None = None,
) -> Array:
  """V-MPO's policy loss: weighted likelihood plus KL from the old policy.

      −ψ log π(a) + λ KL(π_old ‖ π)

  Args:
    logits: float[..., A], policy logits.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled actions.
    weight: float[...], ψ, from `vmpo_weights`; held constant.
    coefficient: λ, ≥ 0, constant; the source learns it as a multiplier.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Song et al. 2020, arXiv:1909.12238, eqs. 2 and 5.
  """
  logits, old_logits = numerics.float_arrays(logits, old_logits)
  if where is not None:
    logits, old_logits = (
      jnp.where(where[..., None], x, 0.0) for x in (logits, old_logits)
    )
  (weight,) = numerics.per_step(where, weight)
  likelihood = numerics.action_log_prob(logits, actions)
  regularizer = lco.lco_kld_loss(logits, old_logits)
  loss = coefficient * regularizer - jax.lax.stop_gradient(weight) * likelihood
  return loss if where is None else jnp.where(where, loss, 0.0)


@arguments.explain_errors
def vmpo_weights(
  advantage: Array,
  bound: float,
  where: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """V-MPO's weights: e^{A/η} in the better half of a batch.

  The temperature η minimises the dual, η ε + η log mean e^{A/η} over the better
  half. There the weights' KL from uniform weights is ε. Bisection finds η; the
  source takes gradient steps instead.

  Args:
    advantage: float[...]; held constant.
    bound: ε > 0, nats.
    where: bool[...], steps that count; None means all.
    axis_name: mapped device axis that divides the batch; None for one device.

  Returns:
    float[...], with mean 1 over the steps that count; 0 where masked out and in
    the worse half. Steps equal to the median belong to the better half.

  Source: Song et al. 2020, arXiv:1909.12238, eqs. 3 and 4.
  """
  (advantage,) = numerics.per_step(where, advantage)
  advantage = jax.lax.stop_gradient(advantage)
  counted = jnp.ones_like(advantage, bool) if where is None else where
  every = jnp.where(counted, advantage, jnp.inf)
  if axis_name is not None:
    every = numerics.all_gather(every, axis_name)
  every = jnp.sort(every.reshape(-1))  # Masked steps, +inf, come last.
  count = jnp.sum(jnp.isfinite(every))
  median = every[jnp.minimum(count // 2, every.size - 1)]
  best = jnp.where(count > 0, every[jnp.maximum(count - 1, 0)], 0.0)
  better = jnp.isfinite(every) & (every >= median)
  size = jnp.maximum(jnp.sum(better.astype(every.dtype)), 1.0)

  def exponentials(values, kept, temperature):
    """Returns e^{(A − best)/η}, which cannot overflow; 0 where not kept."""
    return jnp.where(
      kept, jnp.exp(jnp.where(kept, values - best, 0.0) / temperature), 0.0
    )

  def share_of_better(temperature):
    weight = exponentials(every, better, temperature)
    return weight / jnp.maximum(jnp.sum(weight), 1.0)

  def halve(_, bracket):
    low, high = bracket
    middle = 0.5 * (low + high)
    share = share_of_better(jnp.exp(middle))
    divergence = jnp.log(size) + jnp.sum(jax.scipy.special.xlogy(share, share))
    sharp = divergence > bound
    return jnp.where(sharp, middle, low), jnp.where(sharp, high, middle)

  # Bisect log η, scaled by the range of the better half.
  scale = jnp.maximum(jnp.where(count > 0, best - median, 0.0), 1e-6)
  start = jnp.log(scale) + jnp.asarray([-7.0, 14.0], every.dtype)
  low, high = jax.lax.fori_loop(0, 40, halve, (start[0], start[1]))
  temperature = jnp.exp(0.5 * (low + high))
  total = jnp.sum(exponentials(every, better, temperature))
  own = exponentials(advantage, counted & (advantage >= median), temperature)
  return own * (count.astype(own.dtype) / jnp.maximum(total, 1.0))


def _log_ratio(log_prob, old_log_prob, advantage, where):
  """Returns (log r, A), gradients stopped through π_old and A; 0 if masked."""
  log_prob, old_log_prob, advantage = numerics.per_step(
    where, log_prob, old_log_prob, advantage
  )
  return (
    log_prob - jax.lax.stop_gradient(old_log_prob),
    jax.lax.stop_gradient(advantage),
  )
