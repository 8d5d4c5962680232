"""Losses of pairs of which one is preferred."""

import chex
import jax
import jax.numpy as jnp

from lco_jax import numerics

Array = jax.Array


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
    rejected_log_ratio: float[...], Δ_l, of those not preferred.
    beta: KL strength, > 0.
    where: bool[...], pairs that count; None means all.

  Returns:
    float[...]; 0 where masked out.

  Raises:
    AssertionError: at trace time, if shapes or dtypes differ.

  Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
  """
  chosen, rejected = numerics.float_arrays(chosen_log_ratio, rejected_log_ratio)
  chex.assert_equal_shape([chosen, rejected])
  chosen, rejected = numerics.zero_outside(where, chosen, rejected)
  loss = jax.nn.softplus(-beta * (chosen - rejected))
  return loss if where is None else jnp.where(where, loss, 0.0)
