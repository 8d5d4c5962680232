"""The objective of a language model, around an algorithm's policy loss."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lco_jax import algorithms, checks, diagnostics, losses, numerics, types
from lco_jax.algorithms import policy_losses
from lco_jax.language import data
from lco_jax.training import update

Array = jax.Array


def token_weights(
  mask: Array, weighting: str, longest: int | None = None
) -> tuple[Array, Array]:
  """How tokens and sequences count in a mean loss.

  Args:
    mask: bool[..., C].
    weighting: one of algorithms.WEIGHTINGS.
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
    f"weighting: unknown {weighting!r};"
    f" known: {', '.join(algorithms.WEIGHTINGS)}"
  )


def make_token_objective(
  policy: Callable[[types.Params, data.TokenBatch], Array],
  policy_loss: policy_losses.PolicyLoss,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  value: Callable[[types.Params, data.TokenBatch], Array] | None = None,
  measures_kl: bool = False,
) -> update.Objective:
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
    checks.check_number(name, number, at_least=0.0)

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
      metrics[update.KL] = losses.kl_divergence(batch.old_logits, logits)
    return parts, {
      name: numerics.average(values, batch.mask)
      for name, values in metrics.items()
    }

  return objective


def _blanked(
  batch: data.TokenBatch, logits: Array
) -> tuple[data.TokenBatch, Array]:
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
