"""Relatives of LCO: other ways towards π* ∝ π_old exp(A/β), per step.

    MDPO   −r A + β (KL of π from π_old, estimated)   reverse KL, same optimum
    AWR    −min(e^{A/β}, w) log π(a)                  weighted likelihood
    APA    (A − β (log π(a) − log π_old(a)))²         square in log-probability

APA's square is not convex in the logits; see tests.
"""

import jax
import jax.numpy as jnp

from lco_jax import numerics

Array = jax.Array


def mdpo_loss(
  log_prob: Array,
  old_log_prob: Array,
  advantage: Array,
  beta: float,
  where: Array | None = None,
) -> Array:
  """Mirror descent: −r A + β k, with k the k3 estimate of KL(π ‖ π_old).

  Samples come from π_old, so the estimate is weighted by r: r log r − r + 1,
  which is 0 at r = 1, positive elsewhere, and has mean KL(π ‖ π_old).

  Args:
    log_prob: float[...], log π(a) of the sampled actions, in nats.
    old_log_prob: float[...], log π_old(a); held constant.
    advantage: float[...]; held constant.
    beta: KL strength, > 0.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: Tomar et al. 2020, arXiv:2005.09814.
  """
  log_ratio, advantage = _log_ratio(log_prob, old_log_prob, advantage, where)
  ratio = jnp.exp(log_ratio)
  return -ratio * advantage + beta * (ratio * log_ratio - jnp.expm1(log_ratio))


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

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: Peng et al. 2019, arXiv:1910.00177.
  """
  log_prob, advantage = numerics.per_step(where, log_prob, advantage)
  # Clipped before it can overflow.
  exponent = jnp.minimum(advantage / beta, jnp.log(max_weight))
  return -jax.lax.stop_gradient(jnp.exp(exponent)) * log_prob


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

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: Zhu et al. 2023, arXiv:2306.02231.
  """
  log_ratio, advantage = _log_ratio(log_prob, old_log_prob, advantage, where)
  return jnp.square(advantage - beta * log_ratio)


def _log_ratio(log_prob, old_log_prob, advantage, where):
  """(log r, A), what is held constant being so; 0 where masked out."""
  log_prob, old_log_prob, advantage = numerics.per_step(
    where, log_prob, old_log_prob, advantage
  )
  return (
    log_prob - jax.lax.stop_gradient(old_log_prob),
    jax.lax.stop_gradient(advantage),
  )
