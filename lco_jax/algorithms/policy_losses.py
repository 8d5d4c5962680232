"""Policy losses of algorithms, as pure functions of logits and a batch.

A function's keyword arguments are the options of its algorithm.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import checks, diagnostics, losses, numerics, types

ANCHORS = ("old", "current")
SUPPORTS = ("full", "sampled")


class Batch(Protocol):
  """The fields of a batch that policy losses read.

  An action of D independent dimensions adds an axis [..., D] to actions, and
  [..., D, A] to logits; see `control.dimensions`.

  Attributes:
    action: int32[...].
    advantage: float[...].
    old_logits: float[..., A], behaviour policy's logits.
    old_log_prob: float[...], behaviour policy's log-probability of the action.
    target_logits: float[..., A], optimal logits z*.
    beta: float[...], KL strength of the target.
    dense_advantage: float[..., A]; None where only the sampled action's is
      known.
    legal: bool[..., A], choices that exist; None where all do.
    mask: bool[...], tokens that count; only for sequence losses.
  """

  action: Array
  advantage: Array
  old_logits: Array
  old_log_prob: Array
  target_logits: Array
  beta: Array
  dense_advantage: Array | None
  legal: Array | None
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
    anchor: base of the target's logits: `old` (the behaviour policy's), as the
      theory requires, or `current`, an ablation without curvature and fixed
      point. Its gradient is the constant −A/β, centred if `centred`.
    support: `full` regresses all actions' logits, `sampled` only the sampled
      action's logit.
    centred: whether to leave the mean of the logits free; None means only with
      `full` support. Centring a single action's residual moves all logits.
    clip: ε > 0 stops the gradient where PPO's clip at ε would: at steps whose
      ratio has moved by more than ε in the advantage's direction; None for no
      clip.
  """
  return _make_regression(losses.lco_mse_loss, anchor, support, centred, clip)


def lco_lch(
  anchor: str = "old",
  support: str = "full",
  centred: bool | None = None,
  clip: float | None = None,
) -> PolicyLoss:
  """LCO-LCH (log cosh) on logits.

  Same options as LCO-MSE; the `current` anchor's gradient is −tanh(A/β).
  """
  return _make_regression(losses.lco_lch_loss, anchor, support, centred, clip)


def lco_kld(
  anchor: str = "old",
  max_importance_weight: float = 1.0,
  clip: float | None = None,
) -> PolicyLoss:
  """LCO-KLD, forward KL from the optimal policy.

  Args:
    anchor: `old`, or `current`, an ablation without a fixed point.
    max_importance_weight: upper limit on the loss's factor 1/p(a), ≥ 1; with 1
      the factor is 1.
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
    target = _anchor_target(anchor, logits, batch)
    loss = weight * losses.lco_kld_loss(logits, target, batch.legal)
    return _stop_clipped_gradient(clip, loss, logits, batch), {}

  return policy_loss


def lco_fisher() -> PolicyLoss:
  """LCO in the Fisher metric of the behaviour policy."""
  return _make_fisher(losses.lco_fisher_loss, losses.lco_fisher_dense_loss)


def lco_proximal_kl() -> PolicyLoss:
  """Policy gradient with the forward KL from the behaviour policy."""
  return _make_fisher(
    losses.lco_proximal_kl_loss, losses.lco_proximal_kl_dense_loss
  )


def lco_residual() -> PolicyLoss:
  """Squared residual of the sampled action."""
  # With all actions the mean of the squares is the Fisher loss.
  return _make_fisher(
    losses.lco_residual_mse_loss, losses.lco_fisher_dense_loss
  )


def lco_residual_lch() -> PolicyLoss:
  """Log-cosh residual of the sampled action."""
  return _make_fisher(
    losses.lco_residual_lch_loss, losses.lco_residual_lch_dense_loss
  )


def lco_weighted() -> PolicyLoss:
  """LCO-KLD as a weighted likelihood; expects `losses.lco_weights`."""

  def policy_loss(logits, batch):
    if batch.dense_advantage is not None:
      return losses.lco_kld_loss(logits, batch.target_logits, batch.legal), {}
    return losses.lco_weighted_loss(
      logits, batch.old_logits, batch.action, batch.advantage, batch.legal
    ), {}

  return policy_loss


def ppo(
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  all_actions: bool = False,
) -> PolicyLoss:
  """PPO with a clipped probability ratio.

  Args:
    clip_low: ε below 1, ≥ 0.
    clip_high: ε above 1, ≥ 0.
    dual_clip: c > 1 + ε, the largest ratio that a negative advantage pulls at;
      None for any.
    all_actions: whether to sum over all actions, whose advantages must be
      known, in place of the sampled one.
  """
  if dual_clip is not None:
    checks.check_number("dual_clip", dual_clip, above=1.0 + clip_high)
    if all_actions:
      raise ValueError("dual_clip: not with all_actions")
  checks.check_number("clip_low", clip_low, at_least=0.0)
  checks.check_number("clip_high", clip_high, at_least=0.0)

  def policy_loss(logits, batch):
    log_prob = _log_prob(logits, batch)
    clipped = diagnostics.clipped(
      log_prob, batch.old_log_prob, clip_low, clip_high
    )
    if all_actions:
      loss = losses.ppo_clip_dense_loss(
        logits, batch.old_logits, _all_advantages(batch), clip_low, clip_high
      )
    else:
      loss = losses.ppo_clip_loss(
        log_prob,
        batch.old_log_prob,
        batch.advantage,
        clip_low,
        clip_high,
        dual_clip=dual_clip,
      )
    return loss, {"clip_fraction": clipped.astype(jnp.float32)}

  return policy_loss


def reinforce(all_actions: bool = False) -> PolicyLoss:
  """REINFORCE with the batch's advantages.

  Args:
    all_actions: as of PPO.
  """

  def policy_loss(logits, batch):
    if all_actions:
      known = _all_advantages(batch)
      return losses.reinforce_dense_loss(logits, known), {}
    log_prob = _log_prob(logits, batch)
    return losses.reinforce_loss(log_prob, batch.advantage), {}

  return policy_loss


def cispo(clip_high: float = 0.28) -> PolicyLoss:
  """REINFORCE with clipped, constant importance weights.

  Args:
    clip_high: ε above 1, ≥ 0.
  """
  checks.check_number("clip_high", clip_high, at_least=0.0)
  return _make_sampled(losses.cispo_loss, clip_high=clip_high)


def mdpo(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Mirror descent with the reverse KL.

  Args:
    divergence_coefficient: β, weight of the KL, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  return _make_sampled(losses.mdpo_loss, beta=divergence_coefficient)


def apa(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Advantage-induced policy alignment.

  Args:
    divergence_coefficient: β, weight of the log-ratio, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  return _make_sampled(losses.apa_loss, beta=divergence_coefficient)


def awr(
  divergence_coefficient: float = 1.0, max_weight: float = 20.0
) -> PolicyLoss:
  """Advantage-weighted regression.

  Args:
    divergence_coefficient: β, divisor of the advantages, > 0.
    max_weight: upper limit on the exponentiated advantage, > 0.
  """
  checks.check_number(
    "divergence_coefficient", divergence_coefficient, above=0.0
  )
  checks.check_number("max_weight", max_weight, above=0.0)

  def policy_loss(logits, batch):
    log_prob = _log_prob(logits, batch)
    loss = losses.awr_loss(
      log_prob, batch.advantage, divergence_coefficient, max_weight
    )
    return loss, {}

  return policy_loss


def cmpo(regularizer_coefficient: float = 1.0) -> PolicyLoss:
  """Clipped MPO from Muesli.

  Args:
    regularizer_coefficient: λ of the KL from the clipped target, ≥ 0.
  """
  return _make_regularized(losses.cmpo_loss, regularizer_coefficient)


def vmpo(regularizer_coefficient: float = 1.0) -> PolicyLoss:
  """V-MPO; expects `losses.vmpo_weights` as the batch's advantages.

  Args:
    regularizer_coefficient: λ of KL(π_old ‖ π), ≥ 0.
  """
  return _make_regularized(losses.vmpo_loss, regularizer_coefficient)


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4) -> PolicyLoss:
  """GSPO: PPO's clip with one probability ratio per sequence.

  Args:
    clip_low: ε below 1, ≥ 0; small, because the ratio averages over tokens.
    clip_high: ε above 1, ≥ 0.
  """
  checks.check_number("clip_low", clip_low, at_least=0.0)
  checks.check_number("clip_high", clip_high, at_least=0.0)

  def policy_loss(logits, batch):
    log_ratio = losses.sequence_log_prob_ratio(
      _log_prob(logits, batch),
      batch.old_log_prob,
      batch.mask,
    )
    # Pass the log-ratio as log π(a) with an old log-probability of 0.
    zero = jnp.zeros_like(log_ratio)
    clipped = diagnostics.clipped(log_ratio, zero, clip_low, clip_high)
    loss = losses.ppo_clip_loss(
      log_ratio, zero, batch.advantage, clip_low, clip_high
    )
    return loss, {"clip_fraction": clipped.astype(jnp.float32)}

  return policy_loss


def dapo(
  clip_low: float = 0.2,
  clip_high: float = 0.28,
  dual_clip: float | None = None,
  all_actions: bool = False,
) -> PolicyLoss:
  """PPO's loss with a wider clip range above 1 than below.

  Args:
    clip_low: ε below 1, ≥ 0.
    clip_high: ε above 1, ≥ 0.
    dual_clip: as of PPO.
    all_actions: as of PPO.
  """
  return ppo(clip_low, clip_high, dual_clip, all_actions)


def _make_regression(
  loss, anchor: str, support: str, centred: bool, clip: float | None
) -> PolicyLoss:
  checks.check_choice("anchor", anchor, ANCHORS)
  _check_clip(clip)
  checks.check_choice("support", support, SUPPORTS)
  if centred is None:
    centred = support == "full"

  def policy_loss(logits, batch):
    target = _anchor_target(anchor, logits, batch)
    where = batch.legal
    if centred:
      logits = losses.centred_logits(logits, where)
      target = losses.centred_logits(target, where)
    if support == "sampled":
      where = jax.nn.one_hot(batch.action, logits.shape[-1], dtype=bool)
    each = loss(logits, target, where)
    # Centring does not change the probabilities.
    return _stop_clipped_gradient(clip, each, logits, batch), {}

  return policy_loss


def _check_clip(clip: float | None) -> None:
  if clip is not None:
    checks.check_number("clip", clip, above=0.0)


def _stop_clipped_gradient(
  clip: float | None, loss: Array, logits: Array, batch: Batch
) -> Array:
  """Stops the loss's gradient where PPO's clip at this ε would."""
  if clip is None:
    return loss
  log_prob = _log_prob(logits, batch)
  outside = diagnostics.on_plateau(
    log_prob, batch.old_log_prob, batch.advantage, clip, clip
  )
  return jnp.where(outside, jax.lax.stop_gradient(loss), loss)


def _anchor_target(anchor: str, logits: Array, batch: Batch) -> Array:
  """Returns the batch's z*, or the current logits plus A/β in the ablation."""
  if anchor == "old":
    return batch.target_logits
  shift = batch.target_logits - batch.old_logits  # A/β
  return logits + shift  # The losses hold their targets constant.


def _all_advantages(batch: Batch) -> Array:
  """The advantages of all actions, where an option asks for them."""
  if batch.dense_advantage is None:
    raise ValueError(
      "all_actions: only the sampled action's advantage is known here"
    )
  return batch.dense_advantage


def _make_fisher(
  sampled: Callable[..., Array], dense: Callable[..., Array]
) -> PolicyLoss:
  """Makes a policy loss of what is known: one advantage, or all of them."""

  def policy_loss(logits, batch):
    if batch.dense_advantage is not None:
      loss, known = dense, (batch.dense_advantage,)
    else:
      loss, known = sampled, (batch.action, batch.advantage)
    each = loss(logits, batch.old_logits, *known, batch.beta, batch.legal)
    return each, {}

  return policy_loss


def _make_regularized(
  loss: Callable[..., Array], coefficient: float
) -> PolicyLoss:
  """Makes a policy loss that also reads the old policy's logits."""
  checks.check_number("regularizer_coefficient", coefficient, at_least=0.0)

  def policy_loss(logits, batch):
    return loss(
      logits, batch.old_logits, batch.action, batch.advantage, coefficient
    ), {}

  return policy_loss


def _log_prob(logits: Array, batch: Batch) -> Array:
  """log π of the actions, of all dimensions of an action together."""
  log_prob = numerics.action_log_prob(logits, batch.action)
  if log_prob.ndim > batch.advantage.ndim:
    return jnp.sum(log_prob, axis=-1)
  return log_prob


def _make_sampled(loss, **options) -> PolicyLoss:
  """Makes a policy loss that reads only the actions' log-probabilities."""
  loss = functools.partial(loss, **options)

  def policy_loss(logits, batch):
    log_prob = _log_prob(logits, batch)
    return loss(log_prob, batch.old_log_prob, batch.advantage), {}

  return policy_loss
