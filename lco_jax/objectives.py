"""Algorithms by name: pure functions from parameters and a batch to a loss.

An algorithm is a policy loss of (logits, Batch), one value per step; the value
loss and the entropy bonus beside it are common to all. The options of an
algorithm are the keyword arguments of its function here.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from lco_jax import diagnostics, losses, numerics, types

Array = jax.Array

# (logits [..., A], Batch [...]) → (loss [...], metrics {name: float[...]}).
PolicyLoss = Callable[[Array, types.Batch], tuple[Array, types.Metrics]]
# (params, Batch) → (loss of each part, metrics), as sums and counts.
Objective = Callable[
  [dict[str, types.Params], types.Batch],
  tuple[dict[str, numerics.Average], dict[str, numerics.Average]],
]

ANCHORS = ("old", "current")
SUPPORTS = ("full", "sampled")

# Metric by which an update is stopped early: KL(π_old ‖ π) of a minibatch.
KL = "minibatch_kl"


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
  check_choice("anchor", anchor, ANCHORS)
  check_number("max_importance_weight", max_importance_weight, at_least=1.0)
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
  check_number("clip_low", clip_low, at_least=0.0)
  check_number("clip_high", clip_high, at_least=0.0)

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
  check_number("clip_high", clip_high, at_least=0.0)
  return _sampled(losses.cispo_loss, clip_high=clip_high)


def mdpo(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Mirror descent with the reverse KL.

  Args:
    divergence_coefficient: β of its divergence, > 0.
  """
  check_number("divergence_coefficient", divergence_coefficient, above=0.0)
  return _sampled(losses.mdpo_loss, beta=divergence_coefficient)


def apa(divergence_coefficient: float = 1.0) -> PolicyLoss:
  """Advantage-induced policy alignment.

  Args:
    divergence_coefficient: β on the log-ratio, > 0.
  """
  check_number("divergence_coefficient", divergence_coefficient, above=0.0)
  return _sampled(losses.apa_loss, beta=divergence_coefficient)


def awr(
  divergence_coefficient: float = 1.0, max_weight: float = 20.0
) -> PolicyLoss:
  """Advantage-weighted regression.

  Args:
    divergence_coefficient: β that advantages are divided by, > 0.
    max_weight: bound on the exponentiated advantage, > 0.
  """
  check_number("divergence_coefficient", divergence_coefficient, above=0.0)
  check_number("max_weight", max_weight, above=0.0)

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


POLICY_LOSSES: dict[str, Callable[..., PolicyLoss]] = {
  "lco_mse": lco_mse,
  "lco_lch": lco_lch,
  "lco_kld": lco_kld,
  "ppo": ppo,
  "reinforce": reinforce,
  "cispo": cispo,
  "mdpo": mdpo,
  "awr": awr,
  "apa": apa,
  "cmpo": cmpo,
  "vmpo": vmpo,
}

# Those that take weights in place of advantages; see `losses.vmpo_weights`.
WEIGHTED = ("vmpo",)


def options_of(algorithm: str) -> tuple[str, ...]:
  """Names of the options that an algorithm takes.

  Raises:
    ValueError: if the algorithm is unknown.
  """
  check_choice("algorithm", algorithm, POLICY_LOSSES)
  return tuple(inspect.signature(POLICY_LOSSES[algorithm]).parameters)


def make_policy_loss(algorithm: str, **options) -> PolicyLoss:
  """Builds an algorithm's policy loss.

  Args:
    algorithm: a key of POLICY_LOSSES.
    **options: the algorithm's own options.

  Raises:
    ValueError: if the algorithm is unknown, an option is not one of its own,
      or an option's value is out of range.
  """
  known = options_of(algorithm)
  for name in options:
    if name not in known:
      takes = ", ".join(known) or "no options"
      raise ValueError(f"{name}: {algorithm} takes {takes}")
  return POLICY_LOSSES[algorithm](**options)


def check_number(
  name: str, value: float, at_least: float = -math.inf, above: float = -math.inf
) -> None:
  """Checks a number that an option has.

  Raises:
    ValueError: if it is not finite, less than `at_least` or not above `above`.
  """
  if not (math.isfinite(value) and value >= at_least and value > above):
    bound = f"≥ {at_least}" if at_least > above else f"> {above}"
    raise ValueError(f"{name} must be finite and {bound}, got {value}")


def make_objective(
  policy: types.Apply,
  value: types.Apply,
  policy_loss: PolicyLoss,
  entropy_coefficient: float = 0.0,
  value_clip: float | None = None,
  measures_kl: bool = False,
) -> Objective:
  """Builds the objective of an actor-critic.

  Args:
    policy: (policy parameters, observation) → logits.
    value: (value parameters, observation) → value.
    policy_loss: the algorithm's.
    entropy_coefficient: weight of the entropy bonus, ≥ 0.
    value_clip: how far a value may move from its old one before its loss is
      clipped, > 0, in units of return; None for the plain squared error.
    measures_kl: whether KL(π_old ‖ π) is a metric, as early stopping needs.

  Returns:
    The objective, with losses and metrics for the parts "policy" and "value";
    the policy's loss includes the entropy bonus.

  Raises:
    ValueError: if a number is out of range.
  """
  check_number("entropy_coefficient", entropy_coefficient, at_least=0.0)
  if value_clip is not None and not 0 < value_clip < math.inf:
    raise ValueError(
      f"value_clip must be positive and finite, got {value_clip}"
    )

  def objective(params, batch):
    logits = policy(params["policy"], batch.observation)
    loss, metrics = policy_loss(logits, batch)
    loss = loss - entropy_coefficient * losses.entropy(logits)
    values = value(params["value"], batch.observation)
    if value_clip is None:
      value_loss = losses.squared_value_loss(values, batch.value_target)
    else:
      value_loss = losses.clipped_value_loss(
        values, batch.old_value, batch.value_target, value_clip
      )
    parts = {
      "policy": numerics.average(loss),
      "value": numerics.average(value_loss),
    }
    if measures_kl:
      metrics[KL] = losses.kl_divergence(batch.old_logits, logits)
    return parts, {k: numerics.average(v) for k, v in metrics.items()}

  return objective


def _regression(
  loss, anchor: str, support: str, centred: bool, clip: float | None
) -> PolicyLoss:
  check_choice("anchor", anchor, ANCHORS)
  _check_clip(clip)
  check_choice("support", support, SUPPORTS)
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
    check_number("clip", clip, above=0.0)


def _where_unclipped(
  clip: float | None, loss: Array, logits: Array, batch: types.Batch
) -> Array:
  """A loss without gradient where PPO's clip at this ε leaves none."""
  if clip is None:
    return loss
  log_prob = numerics.action_log_prob(logits, batch.action)
  outside = diagnostics.on_plateau(
    log_prob, batch.old_log_prob, batch.advantage, clip, clip
  )
  return jnp.where(outside, jax.lax.stop_gradient(loss), loss)


def _anchored_target(anchor: str, logits: Array, batch: types.Batch) -> Array:
  """z* of the batch, moved onto the current logits for the ablation."""
  if anchor == "old":
    return batch.target_logits
  shift = batch.target_logits - batch.old_logits  # A/β
  return logits + shift  # The losses hold their targets constant.


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Checks a setting that has a few values.

  Raises:
    ValueError: if the value is not among the choices.
  """
  if value not in choices:
    raise ValueError(f"{name}: unknown {value!r}; known: {', '.join(choices)}")


def _regularized(loss: Callable[..., Array], coefficient: float) -> PolicyLoss:
  """A loss of the sampled action and of all that the old policy says."""
  check_number("regularizer_coefficient", coefficient, at_least=0.0)

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
