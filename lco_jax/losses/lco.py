"""The three LCO losses: convex regressions of logits onto the optimal policy.

    LCO-MSE   ½ Σₐ (z − z*)²          ∇ = z − z*          H = I
    LCO-LCH   Σₐ log cosh(z − z*)     ∇ = tanh(z − z*)    H = diag sech²(z − z*)
    LCO-KLD   KL(π* ‖ π_z)            ∇ = π_z − π*        H = diag π − π πᵀ

All Hessians are positive semidefinite in the logits z; the target is constant.
The ½ makes MSE and LCH agree to second order in the residual; the authors' code
omits it, which doubles the gradient.

Source: arXiv:2603.00963.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, numerics


@arguments.explain_errors
def lco_mse_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Half the squared distance between logits and optimal logits.

  The residual depends on the additive offset of both arguments. Raw logits also
  pin the mean logit to the target's; `centred_logits` of both leave it free.
  Do not pass log-probabilities: their squared error is not convex in logits.

  Args:
    logits: float[..., A], policy logits z, in nats.
    target_logits: float[..., A], optimal logits z*; held constant.
    where: bool[..., A], actions whose residual counts; None means all. Pass the
      one-hot of the sampled action for the `sampled` support.

  Returns:
    float[...], nats², ≥ 0; a row with no counted action gives 0.

  Source: arXiv:2603.00963, LCO-MSE.
  """
  residual = _residual(logits, target_logits, where)
  return 0.5 * jnp.sum(jnp.square(residual), axis=-1)


@arguments.explain_errors
def lco_lch_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Log-cosh distance between logits and optimal logits.

  Quadratic near the target and linear far from it: each gradient component lies
  in (−1, 1), so outlying advantages cannot dominate a batch.

  Args:
    logits: float[..., A], policy logits z, in nats.
    target_logits: float[..., A], optimal logits z*; held constant.
    where: bool[..., A], actions whose residual counts; None means all.

  Returns:
    float[...], nats, ≥ 0; a row with no counted action gives 0.

  Source: arXiv:2603.00963, LCO-LCH.
  """
  residual = _residual(logits, target_logits, where)
  return jnp.sum(numerics.log_cosh(residual), axis=-1)


@arguments.explain_errors
def lco_kld_loss(
  logits: Array, target_logits: Array, where: Array | None = None
) -> Array:
  """Forward KL from the optimal policy to the policy, KL(π* ‖ π_z).

  Args:
    logits: float[..., A], policy logits z, in nats, any additive offset.
    target_logits: float[..., A], log π* up to an offset; held constant. −inf at
      a legal action gives it target probability 0.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, ≥ 0 up to rounding; 0 iff π_z = π* on the legal actions.
    A row with no legal action gives 0.

  Source: arXiv:2603.00963, LCO-KLD.
  """
  logits, target_logits = numerics.float_arrays(logits, target_logits)
  chex.assert_equal_shape([logits, target_logits])
  target_log_probs = numerics.log_softmax(
    jax.lax.stop_gradient(target_logits), where
  )
  log_probs = numerics.log_softmax(logits, where)
  # Outside the target's support the term is 0; the logs there may be −inf.
  support = jnp.isfinite(target_log_probs)
  difference = jnp.where(support, target_log_probs, 0.0) - jnp.where(
    support, log_probs, 0.0
  )
  return jnp.sum(jnp.exp(target_log_probs) * difference, axis=-1)


@arguments.explain_errors
def centred_logits(logits: Array, where: Array | None = None) -> Array:
  """Subtracts the mean over the legal actions, which removes the offset.

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


@arguments.explain_errors
def importance_weight(
  old_logits: Array, actions: Array, max_weight: float
) -> Array:
  """Clipped inverse behaviour probability, min(1/p(a), max_weight).

  If only the sampled action's advantage is known, the first gradient step of
  LCO-KLD is REINFORCE weighted by p(a), biased against rare actions. Scaling
  the loss by 1/p(a) restores first-order agreement with the policy gradient.

  Args:
    old_logits: float[..., A], behaviour policy's logits.
    actions: int[...], sampled actions.
    max_weight: upper limit, ≥ 1; with 1 every weight is 1.

  Returns:
    float[...], in [1, max_weight]; no gradient.

  Source: derived; on-policy ∇ = −p(a)(e^{A/β} − 1)/Z · (e_a − p).
  """
  log_prob = numerics.action_log_prob(old_logits, actions)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(-log_prob), max_weight))


def _residual(
  logits: Array, target_logits: Array, where: Array | None
) -> Array:
  """Returns z − z*, 0 where masked, with no gradient through the target."""
  logits, target_logits = numerics.float_arrays(logits, target_logits)
  chex.assert_equal_shape([logits, target_logits])
  logits, target_logits = numerics.zero_outside(where, logits, target_logits)
  return logits - jax.lax.stop_gradient(target_logits)
