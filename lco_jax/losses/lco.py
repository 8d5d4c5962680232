"""The three LCO losses: convex regressions of logits onto the optimal policy.

    LCO-MSE   ½ Σₐ (z − z*)²          ∇ = z − z*          H = I
    LCO-LCH   Σₐ log cosh(z − z*)     ∇ = tanh(z − z*)    H = diag sech²(z − z*)
    LCO-KLD   KL(π* ‖ π_z)            ∇ = π_z − π*        H = diag π − π πᵀ

All are positive semidefinite in the logits z; the target is a constant. The ½
makes MSE and LCH agree to second order in the residual (the authors' code has
none: a factor 2 in the step size).

Source: arXiv:2603.00963.
"""

import chex
import jax
import jax.numpy as jnp

from lco_jax import numerics

Array = jax.Array


def lco_mse_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Half the squared distance between logits and optimal logits.

  The residual depends on the gauge of both arguments. Regress logits as they
  are to hold their mean in place too, or `centred_logits` of both to leave the
  mean free. Log-probabilities are not logits: their square is not convex.

  Args:
    logits: float[..., A], policy logits z, in nats.
    target_logits: float[..., A], optimal logits z*; held constant.
    where: bool[..., A], actions whose residual counts; None means all. The
      one-hot of the sampled action gives the `sampled` support.

  Returns:
    float[...], nats², ≥ 0; a row with no counted action gives 0.

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: arXiv:2603.00963, LCO-MSE.
  """
  residual = _residual(logits, target_logits, where)
  return 0.5 * jnp.sum(jnp.square(residual), axis=-1)


def lco_lch_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Log-cosh distance between logits and optimal logits.

  Quadratic near the target, linear far from it: each component of the gradient
  lies in (−1, 1), so that no outlier of the advantage dominates a batch.

  Args:
    logits: float[..., A], policy logits z, in nats.
    target_logits: float[..., A], optimal logits z*; held constant.
    where: bool[..., A], actions whose residual counts; None means all.

  Returns:
    float[...], nats, ≥ 0; a row with no counted action gives 0.

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: arXiv:2603.00963, LCO-LCH.
  """
  residual = _residual(logits, target_logits, where)
  return jnp.sum(numerics.log_cosh(residual), axis=-1)


def lco_kld_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Forward KL from the optimal policy to the policy, KL(π* ‖ π_z).

  Args:
    logits: float[..., A], policy logits z, in nats, any additive offset.
    target_logits: float[..., A], log π* up to an offset; held constant. A
      legal −inf is an action that the target never takes.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, ≥ 0 up to rounding; 0 iff π_z = π* on the legal actions.
    A row with no legal action gives 0.

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: arXiv:2603.00963, LCO-KLD.
  """
  logits, target_logits = numerics.float_arrays(logits, target_logits)
  chex.assert_equal_shape([logits, target_logits])
  target_log_probs = numerics.log_softmax(
    jax.lax.stop_gradient(target_logits), where
  )
  log_probs = numerics.log_softmax(logits, where)
  # Off the target's support q log(q/π) is 0, and neither log may be touched.
  support = jnp.isfinite(target_log_probs)
  difference = jnp.where(support, target_log_probs, 0.0) - jnp.where(
    support, log_probs, 0.0
  )
  return jnp.sum(jnp.exp(target_log_probs) * difference, axis=-1)


def centred_logits(logits: Array, where: Array | None = None) -> Array:
  """Logits minus their mean over the legal actions: the gauge-free form.

  Regressing centred logits onto centred targets leaves the free constant
  alone; the Hessian of LCO-MSE becomes I − 11ᵀ/n, still positive semidefinite.

  Args:
    logits: float[..., A].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[..., A]; 0 at illegal actions.
  """
  (logits,) = numerics.float_arrays(logits)
  if where is None:
    return logits - jnp.mean(logits, axis=-1, keepdims=True)
  (logits,) = numerics.zero_outside(where, logits)
  count = jnp.sum(where, axis=-1, keepdims=True, dtype=logits.dtype)
  mean = jnp.sum(logits, axis=-1, keepdims=True) / jnp.maximum(count, 1.0)
  return jnp.where(where, logits - mean, 0.0)


def importance_weight(
  old_logits: Array, actions: Array, max_weight: float
) -> Array:
  """Clipped inverse behaviour probability, min(1/p(a), max_weight).

  With an advantage known at the sampled action only, the first step of LCO-KLD
  is REINFORCE weighted by p(a): biased against rare actions. Multiplying the
  loss by 1/p(a) restores first-order agreement with the policy gradient.

  Args:
    old_logits: float[..., A], behaviour policy's logits.
    actions: int[...], sampled actions.
    max_weight: the clip, ≥ 1; at 1 every weight is 1.

  Returns:
    float[...], in [1, max_weight]; no gradient.

  Source: derived; on-policy ∇ = −p(a)(e^{A/β} − 1)/Z · (e_a − p).
  """
  log_prob = numerics.action_log_prob(old_logits, actions)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(-log_prob), max_weight))


def _residual(
  logits: Array, target_logits: Array, where: Array | None
) -> Array:
  """z − z* at the counted actions, 0 elsewhere; the target held constant."""
  logits, target_logits = numerics.float_arrays(logits, target_logits)
  chex.assert_equal_shape([logits, target_logits])
  logits, target_logits = numerics.zero_outside(where, logits, target_logits)
  return logits - jax.lax.stop_gradient(target_logits)
