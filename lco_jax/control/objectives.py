"""The objective of an actor-critic, around an algorithm's policy loss."""

import math

from lco_jax import checks, losses, numerics, types
from lco_jax.algorithms import policy_losses
from lco_jax.training import update


def make_objective(
  policy: types.Apply,
  value: types.Apply,
  policy_loss: policy_losses.PolicyLoss,
  entropy_coefficient: float = 0.0,
  value_clip: float | None = None,
  measures_kl: bool = False,
) -> update.Objective:
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
  checks.check_number("entropy_coefficient", entropy_coefficient, at_least=0.0)
  if value_clip is not None and not 0 < value_clip < math.inf:
    raise ValueError(
      f"value_clip must be positive and finite, got {value_clip}"
    )

  def objective(params, batch, before=None):
    del before
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
      metrics[update.KL] = losses.kl_divergence(batch.old_logits, logits)
    return parts, {k: numerics.average(v) for k, v in metrics.items()}

  return objective
