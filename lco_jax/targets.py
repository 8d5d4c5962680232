"""Targets of LCO's regression, computed once per rollout.

Per state, with behaviour policy p = softmax(z_old), advantage A and β > 0, the
KL-regularised objective

    max_π  E_{a∼π}[A(a)] − β KL(π ‖ p)

has the closed-form maximiser

    π*(a) = p(a) exp(A(a)/β) / Z        z* = z_old + A/β   (up to a constant)

Logits that differ by a constant give the same policy; the choice of the
constant is called the gauge. All functions raise AssertionError at trace time
if shapes or dtypes do not match.

Source: arXiv:2603.00963.
"""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, checks, numerics


@arguments.explain_errors
def optimal_logits(
  old_logits: Array, advantages: Array, beta: Array | float
) -> Array:
  """Logits of the optimal policy, z* = z_old + A/β.

  Args:
    old_logits: float[..., A], behaviour policy's logits, in nats.
    advantages: float[..., A], advantage of every action, in units of return;
      of the sampled action's alone `advantages.sampled` makes it.
    beta: KL strength, positive, in units of return; a scalar or an array that
      broadcasts against [..., A].

  Returns:
    float[..., A], with the additive constant of `old_logits`.

  Raises:
    ValueError: if β is not positive and finite; a traced β is not checked.

  Source: arXiv:2603.00963, closed-form optimal policy.
  """
  checks.check_beta(beta)
  old_logits, advantages = numerics.float_arrays(old_logits, advantages)
  chex.assert_equal_shape([old_logits, advantages])
  beta = jnp.asarray(beta, old_logits.dtype)
  return old_logits + advantages / jnp.broadcast_to(beta, old_logits.shape)


@arguments.explain_errors
def optimal_log_probs(
  old_logits: Array,
  advantages: Array,
  beta: Array | float,
  where: Array | None = None,
) -> Array:
  """Log-probabilities of the optimal policy, log π* = log softmax(z*).

  Args:
    old_logits: float[..., A], behaviour policy's logits, in nats.
    advantages: float[..., A], advantage of every action, in units of return;
      of the sampled action's alone `advantages.sampled` makes it.
    beta: KL strength, positive; a scalar or broadcasting against [..., A].
    where: bool[..., A], legal actions; None means all.

  Returns:
    float[..., A], −inf at illegal actions.

  Raises:
    ValueError: if a Python or NumPy `beta` is not positive and finite.

  Source: arXiv:2603.00963, closed-form optimal policy.
  """
  return numerics.log_softmax(
    optimal_logits(old_logits, advantages, beta), where
  )


@arguments.explain_errors
def sign_dependent_beta(
  advantage: Array, beta: Array | float, nonpositive_multiple: float
) -> Array:
  """Uses β where A > 0 and a multiple of β where A ≤ 0.

  The authors' code for rule-based rewards uses the multiple 100, which almost
  discards negative samples. A multiple of 1 gives the plain method.

  Args:
    advantage: float[...].
    beta: KL strength, positive and finite; a scalar.
    nonpositive_multiple: factor on β where A ≤ 0, positive and finite.

  Returns:
    float[..., 1], to be broadcast over actions.

  Raises:
    ValueError: if either number is not positive and finite.
  """
  checks.check_beta(beta)
  checks.check_beta(beta * nonpositive_multiple)
  (advantage,) = numerics.float_arrays(advantage)
  low = jnp.asarray(beta * nonpositive_multiple, advantage.dtype)
  return jnp.where(advantage > 0, beta, low)[..., None]


@arguments.explain_errors
def beta_of_variance(variance: Array, kl_budget: float) -> Array:
  """β at which the optimal policies are a KL away, √(Var_p(A) / 2ε).

  To second order in A/β, KL(p ‖ π*) = Var_p(A) / 2β².

  Args:
    variance: float[...], mean over states of the advantage's variance under the
      behaviour policy, in units of return².
    kl_budget: ε > 0, nats.

  Returns:
    float[...], > 0, in units of return.

  Source: derived.
  """
  checks.check_number("kl_budget", kl_budget, above=0.0)
  (variance,) = numerics.float_arrays(variance)
  # A batch that says nothing asks for no step at any β.
  return jnp.sqrt(jnp.maximum(variance, 1e-12) / (2.0 * kl_budget))


@arguments.explain_errors
def ratio_log_probs(
  old_logits: Array,
  actions: Array,
  ratio: Array | float,
  min_prob: float,
  max_prob: Array | float,
) -> Array:
  """Target that scales the sampled action's probability by a given ratio ρ.

    q(a) = ρ p(a), the other actions rescaled by (1 − q(a)) / (1 − p(a))

  If ρ < 1 would push q(a) below `min_prob`, the action keeps p(a); if ρ > 1,
  q(a) is capped at `max_prob`. As in the authors' code, the cap also lowers an
  action with p(a) above it; pass `jnp.maximum(max_prob, p(a))` to avoid that.

  Args:
    old_logits: float[..., A], logits of the policy p to rescale.
    actions: int[...], sampled actions, in [0, A).
    ratio: ρ > 0, a scalar or broadcasting against [...].
    min_prob: lower bound on q(a) of a negative sample.
    max_prob: cap on q(a) of a positive sample, < 1; broadcasts against [...].

  Returns:
    float[..., A], log q.

  Source: arXiv:2603.00963, its earlier version's ratio target.
  """
  (old_logits,) = numerics.float_arrays(old_logits)
  log_probs = jax.nn.log_softmax(old_logits)
  log_prob = numerics.select_action(log_probs, actions)
  dtype, shape = log_prob.dtype, log_prob.shape
  ratio = jnp.broadcast_to(jnp.asarray(ratio, dtype), shape)
  max_prob = jnp.broadcast_to(jnp.asarray(max_prob, dtype), shape)
  prob = jnp.exp(log_prob)
  scaled = ratio * prob
  decreased = jnp.where(scaled < min_prob, prob, scaled)
  increased = jnp.minimum(scaled, max_prob)
  new_prob = jnp.where(
    ratio < 1, decreased, jnp.where(ratio > 1, increased, prob)
  )
  # Sum the others' mass: 1 − p(a) would lose digits near p(a) = 1.
  taken = jax.nn.one_hot(actions, old_logits.shape[-1], dtype=bool)
  others_mass = jnp.sum(jnp.where(taken, 0.0, jnp.exp(log_probs)), axis=-1)
  others_scale = jnp.log1p(-new_prob) - jnp.log(others_mass)
  return jnp.where(
    taken, jnp.log(new_prob)[..., None], log_probs + others_scale[..., None]
  )
