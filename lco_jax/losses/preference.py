"""Losses on pairs of completions of the same prompt."""

import chex
import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import arguments, numerics


@arguments.explain_errors
def dpo_loss(
  chosen_log_ratio: Array,
  rejected_log_ratio: Array,
  beta: float,
  where: Array | None = None,
) -> Array:
  """Direct preference optimisation, −log σ(β (Δ_w − Δ_l)).

  Args:
    chosen_log_ratio: float[...], Δ_w = log π(y_w) − log π_ref(y_w) of whole
      sequences, in nats.
    rejected_log_ratio: float[...], Δ_l, same for the rejected sequences.
    beta: KL strength, > 0.
    where: bool[...], pairs that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
  """
  chosen, rejected = numerics.float_arrays(chosen_log_ratio, rejected_log_ratio)
  chex.assert_equal_shape([chosen, rejected])
  chosen, rejected = numerics.zero_outside(where, chosen, rejected)
  loss = jax.nn.softplus(-beta * (chosen - rejected))
  return loss if where is None else jnp.where(where, loss, 0.0)


@arguments.explain_errors
def qrm_loss(
  chosen_log_prob: Array,
  rejected_log_prob: Array,
  coefficient: float,
  where: Array | None = None,
  beta: float = 0.2,
  margin: float = 2.0,
) -> Array:
  """Pairwise loss of a verifier, −log σ(β (s_w − s_l) − γ) − c s_w.

  s is the mean log-probability of a completion's tokens. The second term, the
  chosen completion's cross-entropy, keeps the verifier a language model.

  Args:
    chosen_log_prob: float[...], s_w = mean log π of the chosen completion's
      tokens, in nats.
    rejected_log_prob: float[...], s_l, same for the rejected completion.
    coefficient: c ≥ 0.
    where: bool[...], pairs that count; None means all.
    beta: β > 0, scale of the difference.
    margin: γ, by which the scaled difference should exceed 0; with γ ≫ β the
      pull of a pair hardly depends on how right the verifier is.

  Returns:
    float[...], ≥ 0; 0 where masked out.

  Source: arXiv:2603.00963, the authors' code for the verifier, whose β and γ
    are the defaults.
  """
  chosen, rejected = numerics.float_arrays(chosen_log_prob, rejected_log_prob)
  chex.assert_equal_shape([chosen, rejected])
  chosen, rejected = numerics.zero_outside(where, chosen, rejected)
  loss = jax.nn.softplus(margin - beta * (chosen - rejected))
  loss = loss - coefficient * chosen
  return loss if where is None else jnp.where(where, loss, 0.0)


@arguments.explain_errors
def rebel_loss(
  first_log_ratio: Array,
  second_log_ratio: Array,
  reward_difference: Array,
  beta: float,
) -> Array:
  """REBEL, (β (Δ − Δ′) − (R − R′))²: regression on reward differences.

  Args:
    first_log_ratio: float[...], Δ = log π(y) − log π_old(y) of whole sequences,
      in nats.
    second_log_ratio: float[...], Δ′, same for the pair's other sequence.
    reward_difference: float[...], R − R′; held constant.
    beta: KL strength, > 0.

  Returns:
    float[...], ≥ 0.

  Source: Gao et al. 2024, arXiv:2404.16767.
  """
  first, second, difference = numerics.float_arrays(
    first_log_ratio, second_log_ratio, reward_difference
  )
  chex.assert_equal_shape([first, second, difference])
  difference = jax.lax.stop_gradient(difference)
  return jnp.square(beta * (first - second) - difference)
