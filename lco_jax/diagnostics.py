"""Measurements of losses and policies; nothing here is trained on."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from lco_jax import numerics
from lco_jax.losses import regularizers

Array = jax.Array


def logit_hessian(loss: Callable[[Array], Array], logits: Array) -> Array:
  """Hessian of a per-state loss in its logits.

  Args:
    loss: float[A] → float[], a loss of one state's logits.
    logits: float[..., A], where to evaluate it.

  Returns:
    float[..., A, A]. Its eigenvalues are best taken on the host
    (`numpy.linalg.eigvalsh`): batched eigensolvers may block small machines.
  """
  flat = logits.reshape(-1, logits.shape[-1])
  hessians = jax.vmap(jax.hessian(loss))(flat)
  return hessians.reshape(*logits.shape, logits.shape[-1])


def target_residual(
  target_logits: Array, logits: Array, where: Array | None = None
) -> Array:
  """How far a policy is from its optimal target, KL(π* ‖ π).

  Args:
    target_logits: float[..., A], log π* up to an offset.
    logits: float[..., A], policy logits.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats.
  """
  return regularizers.kl_divergence(target_logits, logits, where)


def clipped(
  log_prob: Array, old_log_prob: Array, clip_low: float, clip_high: float
) -> Array:
  """Whether the probability ratio lies outside PPO's clip range.

  Args:
    log_prob: float[...], log π(a).
    old_log_prob: float[...], log π_old(a).
    clip_low: ε_low; the range starts at 1 − ε_low.
    clip_high: ε_high; the range ends at 1 + ε_high.

  Returns:
    bool[...].
  """
  log_prob, old_log_prob = numerics.float_arrays(log_prob, old_log_prob)
  chex.assert_equal_shape([log_prob, old_log_prob])
  ratio = jnp.exp(log_prob - old_log_prob)
  return (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)


def explained_variance(
  values: Array,
  returns: Array,
  axis_name: str | None = None,
  where: Array | None = None,
) -> Array:
  """Share of the returns' variance that values explain, 1 − Var(G−V) / Var G.

  Args:
    values: float[...], predictions.
    returns: float[...], what came.
    axis_name: name of the mapped device axis; None for one device.
    where: bool[...], the entries that count; None means all.

  Returns:
    float[], 1 for perfect values, 0 for constant ones, and 0 for constant
    returns.
  """
  chex.assert_equal_shape([values, returns])
  _, error_variance = moments(returns - values, axis_name, where)
  mean, variance = moments(returns, axis_name, where)
  # What rounding leaves of the variance of equal returns is none.
  varies = variance > 1e-10 * (error_variance + jnp.square(mean))
  safe = jnp.where(varies, variance, 1.0)
  return jnp.where(varies, 1.0 - error_variance / safe, 0.0)


def moments(
  values: Array, axis_name: str | None = None, where: Array | None = None
) -> tuple[Array, Array]:
  """Mean and (population) variance over all axes, and over devices.

  Args:
    values: float[...].
    axis_name: name of the mapped device axis; None for one device.
    where: bool[...], the entries that count; None means all.

  Returns:
    (mean, variance), float[] each.
  """

  def mean_of(x):
    total = numerics.average(x, where)
    if axis_name is not None:
      total = jax.lax.psum(total, axis_name)
    return total.mean

  mean = mean_of(values)
  return mean, mean_of(jnp.square(values - mean))
