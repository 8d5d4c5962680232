"""Curvature and gradient direction of a policy loss during training.

Computed after the epochs of an update, in some of its states, on all devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lco_jax import diagnostics, losses, numerics, types
from lco_jax.training import rows

# States per device in which to measure the loss.
_NUM_STATES = 128
_NUM_MINIBATCHES = 8
# A state counts as not yet at its target if a logit is off by more than this.
_MIN_DISTANCE = 1e-3


def measure_loss(
  policy_loss: Callable[[Array, Any], tuple[Array, Any]],
  logits: Array,
  batch: Any,
  where: Array | None = None,
) -> types.Metrics:
  """Measures curvature and gradient direction of a loss in the logits.

  Args:
    policy_loss: (logits [..., A], batch [...]) → (losses [...], metrics); the
      loss of a state must depend on that state alone.
    logits: float[..., A], of the current policy.
    batch: pytree [...], with `target_logits`, `old_logits`, `old_log_prob`,
      `action`.
    where: bool[...], states that count; None means all.

  Returns:
    curvature_min, curvature_mean: smallest Hessian eigenvalue of a state's
      loss; if negative, the loss is not convex there.
    direction_cosine: mean cosine of the angle between −∇L and z* − z.
    direction_against: share of states in which −∇L points away from z*.
    stalled: share of states that are not at z* and have no gradient.
    convexity_violation: largest height of a state's loss above a chord, on a
      random segment around the policy; if positive, the loss is not convex.
    effective_samples: effective sample size of importance weights, as a share.
    kl_requested: KL(π_old ‖ π*); compare kl_old_new, the realised KL.
    ratio_q05, ratio_q50, ratio_q95: quantiles of the probability ratios.
  """
  shape = logits.shape[:-1]
  if where is None:
    where = jnp.ones(shape, bool)
  counted = where.reshape(-1)
  log_ratio = (
    numerics.action_log_prob(logits, batch.action) - batch.old_log_prob
  )
  effective = diagnostics.effective_sample_size(
    jnp.where(where, log_ratio, 0.0), where, numerics.DATA_AXIS
  )
  spread = diagnostics.ratio_quantiles(log_ratio, where, numerics.DATA_AXIS)
  requested = numerics.average(
    losses.kl_divergence(batch.old_logits, batch.target_logits), where
  )
  # Select a fixed random subset of states, so it follows no pattern in
  # environments, time or tokens. Each state keeps a batch axis of size 1.
  rows = np.random.default_rng(0).permutation(counted.size)[:_NUM_STATES]
  logits, batch = jax.tree.map(
    lambda x: x.reshape(-1, 1, *x.shape[len(shape) :])[rows], (logits, batch)
  )
  counted = counted[rows]
  segments = jax.random.normal(jax.random.key(0), logits[:, 0].shape)

  def measure_state(own_logits, own, segment):
    def loss(z):
      return policy_loss(z[None], own)[0][0]

    z = own_logits[0]
    gradient = jax.grad(loss)(z)
    offset = losses.centred_logits(z - own.target_logits[0])
    product, cosine = diagnostics.directionality(
      gradient, offset, jnp.zeros_like(offset)
    )
    violation = diagnostics.convexity_violation(loss, z - segment, z + segment)
    away = jnp.max(jnp.abs(offset)) > _MIN_DISTANCE
    stalled = jnp.all(gradient == 0) & away
    return (
      diagnostics.smallest_curvature(loss, z),
      violation,
      cosine,
      (product < 0).astype(jnp.float32),
      stalled.astype(jnp.float32),
    )

  measured = jax.vmap(measure_state)(logits, batch, segments)
  curvature, violation, *means = measured
  least = jnp.min(jnp.where(counted, curvature, jnp.inf))
  least = numerics.pmin(least, numerics.DATA_AXIS)
  most = jnp.max(jnp.where(counted, violation, -jnp.inf))
  most = numerics.pmax(most, numerics.DATA_AXIS)
  names = ("direction_cosine", "direction_against", "stalled")
  return {
    # Report 0 if no state counts on any device.
    "curvature_min": jnp.where(jnp.isposinf(least), 0.0, least),
    "convexity_violation": jnp.where(jnp.isneginf(most), 0.0, most),
    "effective_samples": effective,
    **spread,
  } | numerics.across_devices(
    {
      "curvature_mean": numerics.average(curvature, counted),
      "kl_requested": requested,
    }
    | {
      name: numerics.average(values, counted)
      for name, values in zip(names, means, strict=True)
    }
  )


def measure_gradients(
  objective: Callable,
  before: dict[str, types.Params],
  params: dict[str, types.Params],
  batch: Any,
) -> types.Metrics:
  """Measures noise and direction of minibatches' policy gradients.

  Divides the batch into at most eight parts of consecutive rows in time order.
  If a part is not a whole number of steps, its content depends on how devices
  divide the streams.

  Args:
    objective: see `update.Objective`.
    before: parameters by part, before the epochs.
    params: parameters by part, after the epochs.
    batch: pytree [T, N, ...], this device's share.

  Returns:
    direction_parameters: cosine of the angle between −∇L before the epochs and
      the epochs' total step, because the minimiser is unknown.
    gradient_signal_to_noise: ‖mean‖² over the variance between parts; see
      `diagnostics.gradient_signal_to_noise`.
  """
  batch = rows.flatten(batch)
  size = len(jax.tree.leaves(batch)[0])
  parts = rows.split_chunks(batch, rows.divide(size, _NUM_MINIBATCHES))

  def gradient(params, part):
    """Returns (mean gradient, number of counted entries) over all devices."""

    def loss(policy):
      own = objective(params | {"policy": policy}, part, before)[0]["policy"]
      count = numerics.psum(own.count, numerics.DATA_AXIS)
      return numerics.Average(own.total, count).mean, count

    found, count = jax.grad(loss, has_aux=True)(params["policy"])
    return numerics.psum(found, numerics.DATA_AXIS), count

  gradients, _ = jax.lax.map(lambda part: gradient(params, part), parts)
  firsts, counts = jax.lax.map(lambda part: gradient(before, part), parts)
  # The scale of the sum is irrelevant: only its direction is used.
  first = jax.tree.map(lambda g: jnp.tensordot(counts, g, axes=1), firsts)
  _, cosine = diagnostics.directionality(
    first, before["policy"], params["policy"]
  )
  return {
    "gradient_signal_to_noise": diagnostics.gradient_signal_to_noise(gradients),
    "direction_parameters": cosine,
  }
