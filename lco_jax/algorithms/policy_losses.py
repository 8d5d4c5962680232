"""Policy losses of algorithms: pure functions of logits and a batch.

The options of an algorithm are the keyword arguments of its function here.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lco_jax import checks, diagnostics, losses, numerics, types

Array = jax.Array

ANCHORS = ("old", "current")
SUPPORTS = ("full", "sampled")


class Batch(Protocol):
  """The fields of a batch that policy losses read.

  Attributes:
    action: int32[...].
    advantage: float[...].
    old_logits: float[..., A], behaviour policy's logits.
    old_log_prob: float[...], its log-probability of the action.
    target_logits: float[..., A], optimal logits z*.
    mask: bool[...], tokens that count; for losses of sequences.
  """

  action: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  mask: Any


# (logits [..., A], Batch [...]) → (loss [...], metrics {name: float[...]}).
PolicyLoss = Callable[[Array, Batch], tuple[Array, types.Metrics]]


def lco_mse(
  anchor: str = "old",
  support: str = "full",
  centred: bool | None = None,
  clip: float | None = None,
) -> PolicyLoss:
  """LCO-MSE on logits.

  Args:
    anchor: what the target's logits are built on: `old`, the behaviour
      policy's, as the theory requires, or `current`, an ablation without
      curvature or fixed point: its gradient is the constant −A/β (centred, if
      the residual is).
    support: `full` regresses every action's logit, `sampled` the sampled one's.
    centred: whether the mean of the logits is left free; None means for `full`
      support only. A centred residual of one action pulls on all of them.
    clip: ε > 0, for no gradient where PPO's clip at ε leaves none: at steps
      whose probability ratio has gone that far to where the advantage points;
      None for none.
  """
  return _regression(losses.lco_mse_loss, anchor, support, centred, clip)


def lco_lch(
  anchor: str = "old",
  support: str = "full",
  centred: bool | None = None,
  clip: float | None = None,
) -> PolicyLoss:
  """LCO-LCH (log cosh) on logits.

  Options as for LCO-MSE; with the `current` anchor the gradient is −tanh(A/β).
  """
  return _regression(losses.lco_lch_loss, anchor, support, centred, clip)


def lco_kld(
  anchor: str = "old",
  max_importance_weight: float = 1.0,
  clip: float | None = None,
) -> PolicyLoss:
  """LCO-KLD, forward KL from the optimal policy.

  Args:
    anchor: `old`, or `current`, an ablation without fixed point.
    max_importance_weight: clip of the factor 1/p(a) on the loss, ≥ 1; at 1
      there is no factor.
    clip: as for LCO-MSE.
  """
  checks.check_choice("anchor", anchor, ANCHORS)
  checks.check_number(
    "max_importance_weight", max_importance_weight, at_least=1.0
  )
  _check_clip(clip)

  def policy_loss(logits, batch):
    weight = losses.importance_weight(
      batch.old_logits, batch.action, max_importance_weight
    )
    target = _anchored_target(anchor, logits, batch)
    loss = weight * losses.lco_kld_loss(logits, target)
    return _where_unclipped(clip, loss, logits, batch), {}

  return policy_loss


def ppo(clip_low: float = 0.2, clip_high: float = 0.2) -> PolicyLoss:
  """PPO with a clipped probability ratio.

  Args:
    clip_low: ε below 1, ≥ 0.
    clip_high: ε above 1, ≥ 0.
  """
  checks.check_number("clip_low", clip_low, at_least=0.0)
  checks.check_number("clip_high", clip_high, at_least=0.0)

  def policy_loss(logits, batch):
    log_prob = numerics.action_log_prob(logits, batch.action)
    clipped = diagnostics.clipped(
      log_prob, batch.old_log_prob, clip_low, clip_high
    )
    loss = losses.ppo_clip_loss(
      log_prob, batch.old_log_prob, batch.advantage, clip_low, clip_high
    )
    return loss, {"clip_fraction": clipped.astype(jnp.float32)}

  return policy_loss


def reinforce() -> PolicyLoss:
  """REINFORCE; the advantage has its baseline in it."""

  def policy_loss(logits, batch):
    log_prob = numerics.action_log_prob(logits, batch.action)
    return losses.reinforce_loss(log_prob, batch.advantage), {}

  return policy_loss


def cispo(clip_high: float = 0.28) -> PolicyLoss:
  """REINFORCE with importance weights that are clipped and held constant.

  Args:
    clip_high: ε above 1, ≥ 0.
  """
  checks.check_number("clip_high", clip_high, at_least=0.0)
  return _sampled(losses.cispo_loss, clip_high=clip_high)


def mdpo(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Mirror descent with the reverse KL.

  Args:
    divergence_coefficient: β of its divergence, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  return _sampled(losses.mdpo_loss, beta=divergence_coefficient)


def apa(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Advantage-induced policy alignment.

  Args:
    divergence_coefficient: β on the log-ratio, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  return _sampled(losses.apa_loss, beta=divergence_coefficient)


def awr(
  divergence_coefficient: float = 1.0, max_weight: float = 20.0
) -> PolicyLoss:
  """Advantage-weighted regression.

  Args:
    divergence_coefficient: β that advantages are divided by, > 0.
    max_weight: bound on the exponentiated advantage, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  checks.check_number("max_weight", max_weight, above=0.0)

  def policy_loss(logits, batch):
    log_prob = numerics.action_log_prob(logits, batch.action)
    loss = losses.awr_loss(
      log_prob, batch.advantage, divergence_coefficient, max_weight
    )
    return loss, {}

  return policy_loss


def cmpo(regularizer_coefficient: float = 1.0) -> PolicyLoss:
  """Clipped MPO, of Muesli.

  Args:
    regularizer_coefficient: λ of the KL from the clipped target, ≥ 0.
  """
  return _regularized(losses.cmpo_loss, regularizer_coefficient)


def vmpo(regularizer_coefficient: float = 1.0) -> PolicyLoss:
  """V-MPO; the batch's advantages must be `losses.vmpo_weights`.

  Args:
    regularizer_coefficient: λ of KL(π_old ‖ π), ≥ 0.
  """
  return _regularized(losses.vmpo_loss, regularizer_coefficient)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> PolicyLoss:
  """PPO's clip with one probability ratio for each sequence.

  Args:
    clip_low: ε below 1, ≥ 0; small, as the ratio is a mean over tokens.
    clip_high: ε above 1, ≥ 0.
  """
  checks.check_number("clip_low", clip_low, at_least=0.0)
  checks.check_number("clip_high", clip_high, at_least=0.0)

  def policy_loss(logits, batch):
    log_ratio = losses.sequence_log_prob_ratio(
      numerics.action_log_prob(logits, batch.action),
      batch.old_log_prob,
      batch.mask,
    )
    # The log-ratio in place of log π(a), against an old log-probability of 0.
    zero = jnp.zeros_like(log_ratio)
    clipped = diagnostics.clipped(log_ratio, zero, clip_low, clip_high)
    loss = losses.ppo_clip_loss(
      log_ratio, zero, batch.advantage, clip_low, clip_high
    )
    return loss, {"clip_fraction": clipped.astype(jnp.float32)}

  return policy_loss


def dapo(clip_low: float = 0.2, clip_high: float = 0.28) -> PolicyLoss:
  """PPO's loss with more room upwards than downwards.

  Args:
    clip_low: ε below 1, ≥ 0.
    clip_high: ε above 1, ≥ 0.
  """
  return ppo(clip_low, clip_high)


def _regression(
  loss, anchor: str, support: str, centred: bool, clip: float | None
) -> PolicyLoss:
  checks.check_choice("anchor", anchor, ANCHORS)
  _check_clip(clip)
  checks.check_choice("support", support, SUPPORTS)
  if centred is None:
    centred = support == "full"

  def policy_loss(logits, batch):
    target = _anchored_target(anchor, logits, batch)
    where = None
    if support == "sampled":
      where = jax.nn.one_hot(batch.action, logits.shape[-1], dtype=bool)
    if centred:
      logits = losses.centred_logits(logits)
      target = losses.centred_logits(target)
    each = loss(logits, target, where)
    # Centred or not, logits have the same probabilities.
    return _where_unclipped(clip, each, logits, batch), {}

  return policy_loss


def _check_clip(clip: float | None) -> None:
  if clip is not None:
    checks.check_number("clip", clip, above=0.0)


def _where_unclipped(
  clip: float | None, loss: Array, logits: Array, batch: Batch
) -> Array:
  """A loss without gradient where PPO's clip at this ε leaves none."""
  if clip is None:
    return loss
  log_prob = numerics.action_log_prob(logits, batch.action)
  outside = diagnostics.on_plateau(
    log_prob, batch.old_log_prob, batch.advantage, clip, clip
  )
  return jnp.where(outside, jax.lax.stop_gradient(loss), loss)


def _anchored_target(anchor: str, logits: Array, batch: Batch) -> Array:
  """z* of the batch, moved onto the current logits for the ablation."""
  if anchor == "old":
    return batch.target_logits
  shift = batch.target_logits - batch.old_logits  # A/β
  return logits + shift  # The losses hold their targets constant.


def _regularized(loss: Callable[..., Array], coefficient: float) -> PolicyLoss:
  """A loss of the sampled action and of all that the old policy says."""
  checks.check_number("regularizer_coefficient", coefficient, at_least=0.0)

  def policy_loss(logits, batch):
    return loss(
      logits, batch.old_logits, batch.action, batch.advantage, coefficient
    ), {}

  return policy_loss


def _sampled(loss, **options) -> PolicyLoss:
  """A policy loss of the sampled actions' log-probabilities."""
  loss = functools.partial(loss, **options)

  def policy_loss(logits, batch):
    log_prob = numerics.action_log_prob(logits, batch.action)
    return loss(log_prob, batch.old_log_prob, batch.advantage), {}

  return policy_loss
