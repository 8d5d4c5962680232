"""Algorithms for language by name: what they minimise, and how tokens count.

An algorithm is a policy loss of (logits, TokenBatch), an estimate of the
advantage and a way to weigh tokens; all share the objective around it.
"""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lco_jax import diagnostics, losses, numerics, objectives, types

Array = jax.Array

# How a completion's tokens count:
#   token     every token of the batch alike
#   sequence  every completion alike, whatever its length
#   constant  every token alike, divided by what the longest could have been
WEIGHTINGS = ("token", "sequence", "constant")


def gspo(
  clip_low: float = 3e-4, clip_high: float = 4e-4
) -> objectives.PolicyLoss:
  """PPO's clip with one probability ratio for each sequence.

  Args:
    clip_low: ε below 1, ≥ 0; small, as the ratio is a mean over tokens.
    clip_high: ε above 1, ≥ 0.
  """
  objectives.check_number("clip_low", clip_low, at_least=0.0)
  objectives.check_number("clip_high", clip_high, at_least=0.0)

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


def dapo(
  clip_low: float = 0.2, clip_high: float = 0.28
) -> objectives.PolicyLoss:
  """PPO's loss with more room upwards than downwards.

  Args:
    clip_low: ε below 1, ≥ 0.
    clip_high: ε above 1, ≥ 0.
  """
  return objectives.ppo(clip_low, clip_high)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One row of the table of algorithms.

  Attributes:
    policy_loss: options → PolicyLoss.
    advantage: how it is estimated by default, one of `signals.NAMES`.
    weighting: one of WEIGHTINGS.
    drops_even_groups: whether groups whose samples all have the same reward are
      left out, rather than counted with an advantage of 0.
    takes_weights: whether it takes `losses.vmpo_weights` for advantages.
    of_sequences: whether a token's loss depends on others of its sequence.
  """

  policy_loss: Callable[..., objectives.PolicyLoss]
  advantage: str
  weighting: str
  drops_even_groups: bool = False
  takes_weights: bool = False
  of_sequences: bool = False


ALGORITHMS = {
  "lco_mse": Algorithm(objectives.lco_mse, "group_relative", "token"),
  "lco_lch": Algorithm(objectives.lco_lch, "group_relative", "token"),
  "lco_kld": Algorithm(objectives.lco_kld, "group_relative", "token"),
  "reinforce": Algorithm(objectives.reinforce, "batch_centred", "token"),
  "ppo": Algorithm(objectives.ppo, "learned", "token"),
  "rloo": Algorithm(objectives.reinforce, "leave_one_out", "token"),
  "grpo": Algorithm(objectives.ppo, "group_relative", "sequence"),
  "dr_grpo": Algorithm(objectives.ppo, "group_centred", "constant"),
  "dapo": Algorithm(dapo, "group_relative", "token", drops_even_groups=True),
  "cispo": Algorithm(objectives.cispo, "group_relative", "token"),
  "gspo": Algorithm(gspo, "group_relative", "sequence", of_sequences=True),
  "mdpo": Algorithm(objectives.mdpo, "group_relative", "token"),
  "awr": Algorithm(objectives.awr, "group_relative", "token"),
  "apa": Algorithm(objectives.apa, "group_relative", "token"),
  "cmpo": Algorithm(objectives.cmpo, "group_relative", "token"),
  "vmpo": Algorithm(
    objectives.vmpo, "group_relative", "token", takes_weights=True
  ),
}


def options_of(algorithm: str) -> tuple[str, ...]:
  """Names of the options that an algorithm takes.

  Raises:
    ValueError: if the algorithm is unknown.
  """
  objectives.check_choice("algorithm", algorithm, ALGORITHMS)
  policy_loss = ALGORITHMS[algorithm].policy_loss
  return tuple(inspect.signature(policy_loss).parameters)


def token_weights(
  mask: Array, weighting: str, longest: int | None = None
) -> tuple[Array, Array]:
  """How tokens and sequences count in a mean loss.

  Args:
    mask: bool[..., C].
    weighting: one of WEIGHTINGS.
    longest: tokens of a sequence at most, where the mask leaves out what no
      sequence has; None for C.

  Returns:
    (weight float32[..., C], share float32[...]): the loss is Σ weight · loss
    over Σ share. A sequence without tokens has weight and share 0.

  Raises:
    ValueError: if the mask is known, not traced, and no token counts.
  """
  if not isinstance(mask, jax.core.Tracer) and not mask.any():
    raise ValueError("mask: no token of the batch counts")
  counted = mask.astype(jnp.float32)
  length = jnp.sum(counted, axis=-1)
  present = (length > 0).astype(jnp.float32)
  if weighting == "token":
    return counted, length
  if weighting == "sequence":
    return counted / jnp.maximum(length, 1.0)[..., None], present
  if weighting == "constant":
    return counted / (longest or mask.shape[-1]), present
  raise ValueError(
    f"weighting: unknown {weighting!r}; known: {', '.join(WEIGHTINGS)}"
  )


def make_token_objective(
  policy: Callable[[types.Params, types.TokenBatch], Array],
  policy_loss: objectives.PolicyLoss,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  value: Callable[[types.Params, types.TokenBatch], Array] | None = None,
  measures_kl: bool = False,
) -> objectives.Objective:
  """Builds the objective of a language model.

  Args:
    policy: (policy parameters, TokenBatch) → logits [..., C, V].
    policy_loss: the algorithm's.
    entropy_coefficient: weight of the entropy bonus, ≥ 0.
    reference_coefficient: weight of the k3 estimate of the KL to the reference
      policy, ≥ 0.
    value: (value parameters, TokenBatch) → values [..., C]; None without.
    measures_kl: as of `objectives.make_objective`.

  Returns:
    The objective, for the part "policy", and "value" if there is one.

  Raises:
    ValueError: if a number is out of range.
  """
  for name, number in (
    ("entropy_coefficient", entropy_coefficient),
    ("reference_coefficient", reference_coefficient),
  ):
    objectives.check_number(name, number, at_least=0.0)

  def objective(params, batch):
    logits = policy(params["policy"], batch)
    batch, logits = _blanked(batch, logits)
    loss, metrics = policy_loss(logits, batch)
    log_prob = numerics.action_log_prob(logits, batch.action)
    if reference_coefficient:
      loss += reference_coefficient * losses.kl_estimate_k3(
        log_prob, batch.reference_log_prob
      )
    if entropy_coefficient:
      loss -= entropy_coefficient * losses.entropy(logits)
    total = numerics.Average(jnp.sum(batch.weight * loss), jnp.sum(batch.share))
    parts = {"policy": total}
    if value is not None:
      values = jnp.where(batch.mask, value(params["value"], batch), 0.0)
      parts["value"] = numerics.average(
        losses.squared_value_loss(values, batch.value_target), batch.mask
      )
    # Where PPO at its usual clip would not learn; its kin say their own.
    outside = diagnostics.clipped(log_prob, batch.old_log_prob, 0.2, 0.2)
    metrics = {"clip_fraction": outside.astype(jnp.float32)} | metrics
    if measures_kl:
      metrics[objectives.KL] = losses.kl_divergence(batch.old_logits, logits)
    return parts, {
      name: numerics.average(values, batch.mask)
      for name, values in metrics.items()
    }

  return objective


def _blanked(
  batch: types.TokenBatch, logits: Array
) -> tuple[types.TokenBatch, Array]:
  """Zeros under the mask, before any arithmetic: 0 · NaN is NaN."""
  mask = batch.mask

  def blank(values):
    where = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return jnp.where(where, values, jnp.zeros_like(values))

  fields = (
    "action",
    "weight",
    "advantage",
    "old_logits",
    "old_log_prob",
    "target_logits",
    "reference_log_prob",
    "value_target",
  )
  clean = {name: blank(getattr(batch, name)) for name in fields}
  return dataclasses.replace(batch, **clean), blank(logits)
