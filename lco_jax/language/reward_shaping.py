"""Scales and penalties of rewards, before advantages are estimated.

Metrics of rewards are of the task's own.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from lco_jax import losses
from lco_jax.language import data
from lco_jax.language.setup import Options


def penalize_length(length: Array, longest: int, num_tokens: int) -> Array:
  """Soft penalty of long completions.

      0 up to L − c tokens, then (length − (L − c)) / c, which is 1 at L

  Args:
    length: int[...], tokens of completions.
    longest: L, tokens that a completion may have.
    num_tokens: c, 0 for no penalty.

  Returns:
    float32[...], in [0, 1], to be subtracted from rewards.

  Source: Yu et al. 2025, arXiv:2503.14476 (DAPO), eq. 13.
  """
  if not num_tokens:
    return jnp.zeros(length.shape, jnp.float32)
  beyond = (length - (longest - num_tokens)).astype(jnp.float32)
  return jnp.clip(beyond / num_tokens, 0.0, 1.0)


def shape_rewards(
  options: Options, samples: data.Samples, longest: int, kl: Array | None
) -> data.Samples:
  """Scales rewards, and subtracts the penalties that the options ask for.

  Args:
    options: of the training.
    samples: [G, N].
    longest: tokens that a completion may have.
    kl: float[G, N, C], penalty of each token for leaving the reference; None
      for none.

  Returns:
    The samples with the rewards that are learned from.
  """
  length = jnp.sum(samples.mask, axis=-1)
  penalty = penalize_length(length, longest, options.length_penalty_tokens)
  if kl is not None:
    total = jnp.sum(jnp.where(samples.mask, kl, 0.0), axis=-1)
    penalty += options.reference_coefficient * total
  reward = options.reward_scale * samples.reward + options.reward_offset
  return dataclasses.replace(samples, reward=reward - penalty)


def estimate_kl(
  options: Options, log_prob: Array, reference_log_prob: Array, exact: Array
) -> Array:
  """The KL penalty of tokens, by the estimator of the options: [G, N, C]."""
  if options.reference_kl == "exact":
    return exact
  return losses.kl_penalty(log_prob, reference_log_prob, options.reference_kl)
