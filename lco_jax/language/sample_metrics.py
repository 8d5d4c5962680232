"""Metrics of a language update's samples, over all devices.

Axes: samples G, prompts N, tokens C.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import diagnostics, numerics, types
from lco_jax.language import data

# Metrics that need an extra forward pass use one completion in so many.
_ONE_IN = 4


def take_quarter(tree: Any) -> Any:
  """Takes the completions that metrics with an extra forward pass use.

  Args:
    tree: of arrays [G, N, ...].

  Returns:
    The same of a quarter of each prompt's samples, rounded up. They are of all
    prompts, so that they are the same however devices divide the prompts.
  """
  count = -(-len(jax.tree.leaves(tree)[0]) // _ONE_IN)
  return jax.tree.map(lambda leaf: leaf[:count], tree)


def summarize_samples(
  samples: data.Samples, mask: Array, even: Array
) -> types.Metrics:
  """Summarises rewards and lengths of samples.

  Args:
    samples: [G, N], this device's share.
    mask: bool[G, N, C], tokens that enter the loss.
    even: bool[G, N], samples of groups whose rewards are all equal.
  """
  length = jnp.sum(samples.mask, axis=-1).astype(jnp.float32)
  mean, variance = diagnostics.moments(samples.reward, numerics.DATA_AXIS)
  shares = {
    "correct": samples.correct,
    "truncated": samples.truncated,
    "even_groups": even,
  }
  if samples.failed is not None:
    shares["scoring_failed"] = samples.failed
  parts = {}
  for name, values in (samples.rewards or {}).items():
    own_mean, own_variance = diagnostics.moments(values, numerics.DATA_AXIS)
    parts[f"reward_{name}_mean"] = own_mean
    parts[f"reward_{name}_std"] = jnp.sqrt(own_variance)
  return (
    parts
    | {
      "reward_mean": mean,
      "reward_std": jnp.sqrt(variance),
      "completion_length_max": numerics.pmax(
        jnp.max(length), numerics.DATA_AXIS
      ),
      "tokens": numerics.psum(jnp.sum(length), numerics.DATA_AXIS),
    }
    | numerics.across_devices(
      {k: numerics.average(v.astype(jnp.float32)) for k, v in shares.items()}
      | {
        "completion_length_mean": numerics.average(length),
        "counted_tokens": numerics.average(
          mask.astype(jnp.float32), samples.mask
        ),
      }
    )
  )
