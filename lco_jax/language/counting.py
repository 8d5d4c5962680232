"""What of a batch counts, and as what, by the rules of an algorithm.

Axes: samples G, prompts N, tokens C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lco_jax import algorithms, losses, numerics
from lco_jax.language import data, signals

Array = jax.Array


class Counted(NamedTuple):
  """What counts.

  Attributes:
    mask: bool[G, N, C], tokens that do.
    advantage: float32[G, N, C], theirs, or V-MPO's weights; 0 elsewhere.
    even: bool[G, N], samples of groups whose rewards are all equal.
  """

  mask: Array
  advantage: Array
  even: Array


def check_groups(
  algorithm: algorithms.Algorithm, advantage: str, num_samples: int
) -> None:
  """Checks that a prompt has samples to compare where some are compared.

  Args:
    algorithm: that learns.
    advantage: by its name in `signals`.
    num_samples: G.

  Raises:
    ValueError: if there is but one.
  """
  in_groups = advantage in signals.IN_GROUPS or algorithm.drops_even_groups
  if num_samples < 2 and in_groups:
    raise ValueError(
      f"num_samples must be ≥ 2 for {advantage} advantages in groups, got"
      f" {num_samples}"
    )


def of_batch(
  algorithm: algorithms.Algorithm,
  samples: data.Samples | data.TextSamples,
  advantage: Array,
  dual_bound: float,
) -> Counted:
  """What counts of this device's share of a batch.

  Args:
    algorithm: that learns.
    samples: [G, N].
    advantage: float32[G, N, C].
    dual_bound: ε of V-MPO's weights, > 0, nats, where they are taken.
  """
  reward = samples.reward
  even = jnp.ptp(reward, axis=0, keepdims=True) == 0
  even = jnp.broadcast_to(even, reward.shape)
  mask = samples.mask
  if algorithm.drops_even_groups:
    mask = mask & ~even[..., None]
  advantage = jnp.where(mask, advantage, 0.0)
  if algorithm.takes_weights:
    advantage = losses.vmpo_weights(
      advantage, dual_bound, mask, numerics.DEVICE_AXIS
    )
  return Counted(mask, advantage, even)
