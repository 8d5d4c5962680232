"""LCO that is right when only the sampled action's advantage is known.

With the behaviour policy p = softmax(z_old), the change of the logits
Δ = z − z_old, and Δ̄ = Δ − Σ_b p_b Δ_b, which is free of the logits' offset:

    Fisher       ½ Σ_b p_b Δ̄_b² − (A/β) Δ̄_a          H = diag p − p pᵀ
    proximal KL  KL(p ‖ π) − (A/β) Δ̄_a               H = diag π − π πᵀ
    residual     ½ (Δ̄_a − A/β)²                      H = (e_a − p)(e_a − p)ᵀ
    log cosh     log cosh(Δ̄_a − A/β)                 H = sech² · the same
    weighted     KL(p ‖ π) − (w − 1) log π(a)         H = w (diag π − π πᵀ)

All are convex in z for either sign of A. Over a ~ p the Fisher loss has the
mean ½ Σ_b p_b (Δ̄_b − Ā_b/β)² up to a constant, Ā = A − Σ_b p_b A_b: the squared
distance to the optimal logits z_old + A/β in the Fisher metric of p. So no
baseline changes its expected gradient, its minimiser is the optimal policy, and
its first step is the policy gradient, divided by β. The `dense` forms take the
advantages of all actions and equal these means up to a constant.

Δ̄_a = log (π(a) / p(a)) + KL(p ‖ π): the residual loss is that of APA with the
KL added, which makes it convex.

Source: derived; the regression of advantages on the score function is that of
compatible function approximation (Kakade 2001, "A Natural Policy Gradient").
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, checks, numerics
from lco_jax.losses import regularizers


@arguments.explain_errors
def lco_fisher_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Squared distance to the optimal logits in the Fisher metric, sampled.

      ½ Σ_b p_b Δ̄_b² − (A/β) Δ̄_a        ∇ = p ⊙ Δ̄ − (A/β)(e_a − p)

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled from the behaviour policy, in [0, A).
    advantages: float[...], of the sampled actions, in units of return; held
      constant.
    beta: KL strength, positive, in units of return; a scalar or broadcasting
      against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats²; 0 at z = z_old and for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  probs, change = _centred_change(logits, old_logits, where)
  own, step = _read_action(change, actions, advantages, beta, where)
  return 0.5 * jnp.sum(probs * jnp.square(change), axis=-1) - step * own


@arguments.explain_errors
def lco_fisher_dense_loss(
  logits: Array,
  old_logits: Array,
  dense_advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Squared distance to the optimal logits in the Fisher metric, all actions.

      ½ Σ_b p_b Δ̄_b² − Σ_b p_b (Ā_b/β) Δ̄_b      ∇ = p ⊙ (Δ̄ − Ā/β)

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    dense_advantages: float[..., A], in units of return; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats²; 0 at z = z_old and for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  probs, change = _centred_change(logits, old_logits, where)
  step = _dense_step(probs, dense_advantages, beta, where)
  return jnp.sum(probs * change * (0.5 * change - step), axis=-1)


@arguments.explain_errors
def lco_proximal_kl_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Policy gradient with the forward KL from the behaviour policy, sampled.

      KL(p ‖ π) − (A/β) Δ̄_a        ∇ = π − p − (A/β)(e_a − p)

  The minimiser of its mean is p (1 + Ā/β) where that is positive; the optimal
  policy to first order in 1/β.

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled from the behaviour policy, in [0, A).
    advantages: float[...], of the sampled actions; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats; 0 at z = z_old and for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  _, change = _centred_change(logits, old_logits, where)
  own, step = _read_action(change, actions, advantages, beta, where)
  return _forward_kl(logits, old_logits, where) - step * own


@arguments.explain_errors
def lco_proximal_kl_dense_loss(
  logits: Array,
  old_logits: Array,
  dense_advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Policy gradient with the forward KL, advantages of all actions.

      KL(p ‖ π) − Σ_b p_b (Ā_b/β) Δ̄_b      ∇ = π − p (1 + Ā/β)

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    dense_advantages: float[..., A]; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats; 0 at z = z_old and for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  probs, change = _centred_change(logits, old_logits, where)
  step = _dense_step(probs, dense_advantages, beta, where)
  return _forward_kl(logits, old_logits, where) - jnp.sum(
    probs * step * change, axis=-1
  )


@arguments.explain_errors
def lco_residual_mse_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Half the squared residual of the sampled action's centred change.

      ½ (Δ̄_a − A/β)²        ∇ = (Δ̄_a − A/β)(e_a − p)

  Its mean over actions is the Fisher loss's up to a constant; one sample is
  noisier, because the square is sampled too.

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled from the behaviour policy, in [0, A).
    advantages: float[...], of the sampled actions; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats², ≥ 0; 0 for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  _, change = _centred_change(logits, old_logits, where)
  own, step = _read_action(change, actions, advantages, beta, where)
  return 0.5 * jnp.square(own - step)


@arguments.explain_errors
def lco_residual_lch_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Log-cosh residual of the sampled action's centred change.

      log cosh(Δ̄_a − A/β)        ∇ = tanh(Δ̄_a − A/β)(e_a − p)

  The pull of one sample is bounded. A baseline changes its expected gradient,
  because tanh is not linear; the minimiser is a median-like centre.

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled from the behaviour policy, in [0, A).
    advantages: float[...], of the sampled actions; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, ≥ 0; 0 for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  _, change = _centred_change(logits, old_logits, where)
  own, step = _read_action(change, actions, advantages, beta, where)
  return numerics.log_cosh(own - step)


@arguments.explain_errors
def lco_residual_lch_dense_loss(
  logits: Array,
  old_logits: Array,
  dense_advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Mean log-cosh residual over all actions, Σ_b p_b log cosh(Δ̄_b − Ā_b/β).

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    dense_advantages: float[..., A]; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats, ≥ 0; 0 for a row with no legal action.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; see the head of the file.
  """
  probs, change = _centred_change(logits, old_logits, where)
  step = _dense_step(probs, dense_advantages, beta, where)
  return jnp.sum(probs * numerics.log_cosh(change - step), axis=-1)


@arguments.explain_errors
def lco_weighted_loss(
  logits: Array,
  old_logits: Array,
  actions: Array,
  weights: Array,
  where: Array | None = None,
) -> Array:
  """Forward KL to the optimal policy, KL(π* ‖ π), as a weighted likelihood.

      KL(p ‖ π) − (w − 1) log π(a)        ∇ = π − p − (w − 1)(e_a − π)

  With w = e^{A/β} / E_p[e^{A/β}] its mean over a ~ p is KL(π* ‖ π) up to a
  constant; its minimiser is π*. With the constant weight 1 nothing moves.

  Args:
    logits: float[..., A], policy logits z, in nats.
    old_logits: float[..., A], behaviour policy's; held constant.
    actions: int[...], sampled from the behaviour policy, in [0, A).
    weights: float[...], w ≥ 0, from `lco_weights`; held constant.
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[...], nats; 0 for a row with no legal action.

  Source: derived; see the head of the file.
  """
  (weights,) = numerics.float_arrays(weights)
  (logits,) = numerics.float_arrays(logits)
  log_probs = numerics.log_softmax(logits, where)
  log_probs = jnp.where(jnp.isfinite(log_probs), log_probs, 0.0)
  log_prob = numerics.select_action(log_probs, actions)
  excess = _zero_empty(jax.lax.stop_gradient(weights), where) - 1.0
  return _forward_kl(logits, old_logits, where) - excess * log_prob


@arguments.explain_errors
def lco_weights(
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
  axis_name: str | None = None,
) -> Array:
  """Weights of the weighted likelihood, e^{A/β} over its mean in the batch.

  One mean for all states: the weights are not exactly invariant to a baseline
  that differs between states.

  Args:
    advantages: float[...]; held constant.
    beta: KL strength, positive; a scalar or broadcasting against [...].
    where: bool[...], steps that count; None means all.
    axis_name: mapped device axis that divides the batch; None for one device.

  Returns:
    float[...], ≥ 0, with mean 1 over the steps that count; 0 elsewhere.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: derived; AWR (arXiv:1910.00177) without its mean and with its KL.
  """
  checks.check_beta(beta)
  (advantages,) = numerics.per_step(where, advantages)
  step = jax.lax.stop_gradient(advantages / _as_beta(beta, advantages))
  counted = jnp.ones_like(step, bool) if where is None else where
  peak = jnp.max(step, where=counted, initial=-jnp.inf)
  count = jnp.sum(counted, dtype=step.dtype)
  if axis_name is not None:
    peak = numerics.pmax(peak, axis_name)
    count = numerics.psum(count, axis_name)
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
  weights = jnp.where(counted, jnp.exp(jnp.where(counted, step - peak, 0.0)), 0)
  total = jnp.sum(weights)
  if axis_name is not None:
    total = numerics.psum(total, axis_name)
  return weights * (count / jnp.where(total > 0, total, 1.0))


def _centred_change(
  logits: Array, old_logits: Array, where: Array | None
) -> tuple[Array, Array]:
  """Returns (p, Δ̄), both 0 at illegal actions; no gradient through z_old."""
  logits, old_logits = numerics.float_arrays(logits, old_logits)
  chex.assert_equal_shape([logits, old_logits])
  logits, old_logits = numerics.zero_outside(where, logits, old_logits)
  old_logits = jax.lax.stop_gradient(old_logits)
  probs = jnp.exp(numerics.log_softmax(old_logits, where))
  change = logits - old_logits
  change = change - jnp.sum(probs * change, axis=-1, keepdims=True)
  (change,) = numerics.zero_outside(where, change)
  return probs, change


def _read_action(
  change: Array,
  actions: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None,
) -> tuple[Array, Array]:
  """Returns (Δ̄_a, A/β) of the sampled actions; A/β is 0 in empty rows."""
  checks.check_beta(beta)
  (advantages,) = numerics.float_arrays(advantages)
  own = numerics.select_action(change, actions)
  chex.assert_equal_shape([own, advantages])
  step = _zero_empty(advantages, where) / _as_beta(beta, advantages)
  return own, jax.lax.stop_gradient(step)


def _dense_step(
  probs: Array,
  dense_advantages: Array,
  beta: Array | float,
  where: Array | None,
) -> Array:
  """Returns Ā/β, advantages centred by p; 0 at illegal actions."""
  checks.check_beta(beta)
  (advantages,) = numerics.float_arrays(dense_advantages)
  chex.assert_equal_shape([probs, advantages])
  (advantages,) = numerics.zero_outside(where, advantages)
  mean = jnp.sum(probs * advantages, axis=-1, keepdims=True)
  (centred,) = numerics.zero_outside(where, advantages - mean)
  step = centred / _as_beta(beta, centred[..., 0])[..., None]
  return jax.lax.stop_gradient(step)


def _forward_kl(logits: Array, old_logits: Array, where: Array | None) -> Array:
  """KL(p ‖ π) with no gradient through p."""
  return regularizers.kl_divergence(
    jax.lax.stop_gradient(old_logits), logits, where
  )


def _as_beta(beta: Array | float, like: Array) -> Array:
  return jnp.broadcast_to(jnp.asarray(beta, like.dtype), like.shape)


def _zero_empty(values: Array, where: Array | None) -> Array:
  """Zeroes the values of rows without any legal action."""
  if where is None:
    return values
  return jnp.where(jnp.any(where, axis=-1), values, 0.0)
