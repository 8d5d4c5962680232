"""What a policy loss looks like while it is trained on: curvature, direction.

Computed after the epochs of an update, in some of its states, over all devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import diagnostics, losses, numerics, types

Array = jax.Array

# States in which the loss is looked at, on each device.
_NUM_STATES = 128
_NUM_MINIBATCHES = 8
# A state's logits are this far from the target, at least, to be on the way.
_ON_THE_WAY = 1e-3


def measure_loss(
  policy_loss: Callable[[Array, Any], tuple[Array, Any]],
  logits: Array,
  batch: Any,
  where: Array | None = None,
) -> types.Metrics:
  """Curvature and direction of a loss in the logits, and what they rest on.

  Args:
    policy_loss: (logits [..., A], batch [...]) → (losses [...], metrics); the
      loss of a state must depend on that state alone.
    logits: float[..., A], of the policy now.
    batch: pytree [...], with `target_logits`, `old_logits`, `old_log_prob`,
      `action`.
    where: bool[...], states that count; None means all.

  Returns:
    curvature_min, curvature_mean: smallest Hessian eigenvalue of a state's
      loss; below 0 it is not convex there.
    direction_cosine: mean cosine of the angle between −∇L and the way to z*.
    direction_against: share of states in which −∇L leads away from it.
    stalled: share of states that are not at z* and have no gradient.
    convexity_violation: furthest that a state's loss rises above a chord, on a
      segment in a random direction about the policy; above 0 it is not convex.
    effective_samples: share of samples that importance weights leave.
    kl_requested: KL(π_old ‖ π*), of which kl_old_new is what was realised.
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
    jnp.where(where, log_ratio, 0.0), where, numerics.DEVICE_AXIS
  )
  spread = diagnostics.ratio_quantiles(log_ratio, where, numerics.DEVICE_AXIS)
  requested = numerics.average(
    losses.kl_divergence(batch.old_logits, batch.target_logits), where
  )
  # A few states, the same every time, and no pattern of environments, times or
  # tokens; a state is a row [1, ...] to what takes batches.
  rows = np.random.default_rng(0).permutation(counted.size)[:_NUM_STATES]
  logits, batch = jax.tree.map(
    lambda x: x.reshape(-1, 1, *x.shape[len(shape) :])[rows], (logits, batch)
  )
  counted = counted[rows]
  segments = jax.random.normal(jax.random.key(0), logits[:, 0].shape)

  def look(own_logits, own, segment):
    def loss(z):
      return policy_loss(z[None], own)[0][0]

    z = own_logits[0]
    gradient = jax.grad(loss)(z)
    to_go = losses.centred_logits(z - own.target_logits[0])
    product, cosine = diagnostics.directionality(
      gradient, to_go, jnp.zeros_like(to_go)
    )
    violation = diagnostics.convexity_violation(loss, z - segment, z + segment)
    stalled = jnp.all(gradient == 0) & (jnp.max(jnp.abs(to_go)) > _ON_THE_WAY)
    return (
      diagnostics.smallest_curvature(loss, z),
      violation,
      cosine,
      (product < 0).astype(jnp.float32),
      stalled.astype(jnp.float32),
    )

  curvature, violation, *means = jax.vmap(look)(logits, batch, segments)
  least = jnp.min(jnp.where(counted, curvature, jnp.inf))
  least = jax.lax.pmin(least, numerics.DEVICE_AXIS)
  most = jnp.max(jnp.where(counted, violation, -jnp.inf))
  most = jax.lax.pmax(most, numerics.DEVICE_AXIS)
  names = ("direction_cosine", "direction_against", "stalled")
  return {
    # Where no state counts, anywhere, nothing bends.
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
  """What minibatches' policy gradients have in common, and where they led.

  A batch is divided by its steps where eight divides them, and otherwise its
  rows are; then what a part holds depends on how devices divide the streams.

  Args:
    objective: as of `update.Objective`.
    before: parameters by part, before the epochs.
    params: the same after them.
    batch: pytree [T, N, ...], this device's share.

  Returns:
    direction_parameters: cosine of the angle between −∇L before the epochs and
      where these ended, the minimiser itself being unknown.
    gradient_signal_to_noise: ‖mean‖² over the variance between parts, eight at
      most; see `diagnostics.gradient_signal_to_noise`.
  """
  steps, streams = jax.tree.leaves(batch)[0].shape[:2]
  size = steps * streams
  count = next(n for n in range(_NUM_MINIBATCHES, 0, -1) if size % n == 0)
  parts = jax.tree.map(
    lambda x: x.reshape(count, size // count, *x.shape[2:]), batch
  )

  def gradient(params, part):
    """(mean gradient, what it is a mean of) over all devices."""

    def loss(policy):
      own = objective(params | {"policy": policy}, part, before)[0]["policy"]
      count = jax.lax.psum(own.count, numerics.DEVICE_AXIS)
      return numerics.Average(own.total, count).mean, count

    found, count = jax.grad(loss, has_aux=True)(params["policy"])
    return jax.lax.psum(found, numerics.DEVICE_AXIS), count

  gradients, _ = jax.lax.map(lambda part: gradient(params, part), parts)
  firsts, counts = jax.lax.map(lambda part: gradient(before, part), parts)
  # Their sum is as long as it likes: an angle is asked for.
  first = jax.tree.map(lambda g: jnp.tensordot(counts, g, axes=1), firsts)
  _, cosine = diagnostics.directionality(
    first, before["policy"], params["policy"]
  )
  return {
    "gradient_signal_to_noise": diagnostics.gradient_signal_to_noise(gradients),
    "direction_parameters": cosine,
  }
