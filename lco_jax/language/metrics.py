"""What is logged of a language update, over all devices.

Axes: samples G, prompts N, tokens C, vocabulary V.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lco_jax import diagnostics, losses, numerics, types
from lco_jax.language import data, signals

Array = jax.Array

# What costs a pass of its own and is only looked at, is looked at in one
# completion in so many.
_LOOKED_AT = 4


def looked_at(tree: Any) -> Any:
  """Those completions that metrics with a pass of their own look at.

  Args:
    tree: of arrays [G, N, ...].

  Returns:
    The same of fewer samples of each prompt and, if that is not enough, of
    fewer prompts.
  """
  num_samples, num_prompts = jax.tree.leaves(tree)[0].shape[:2]
  samples = -(-num_samples // _LOOKED_AT)
  prompts = -(-num_samples * num_prompts // (_LOOKED_AT * samples))
  return jax.tree.map(lambda leaf: leaf[:samples, :prompts], tree)


def of_samples(
  samples: data.Samples | data.TextSamples, even: Array
) -> types.Metrics:
  """What was sampled, but for its entropy.

  Args:
    samples: [G, N], this device's share.
    even: bool[G, N], samples of groups whose rewards are all equal.
  """
  length = jnp.sum(samples.mask, axis=-1).astype(jnp.float32)
  mean, variance = diagnostics.moments(samples.reward, numerics.DEVICE_AXIS)
  shares = {
    "correct": samples.correct,
    "truncated": samples.truncated,
    "even_groups": even,
  }
  return {
    "reward_mean": mean,
    "reward_std": jnp.sqrt(variance),
    "completion_length_max": jax.lax.pmax(
      jnp.max(length), numerics.DEVICE_AXIS
    ),
    "tokens": jax.lax.psum(jnp.sum(length), numerics.DEVICE_AXIS),
  } | numerics.across_devices(
    {k: numerics.average(v.astype(jnp.float32)) for k, v in shares.items()}
    | {"completion_length_mean": numerics.average(length)}
  )


def of_target(
  batch: data.TokenBatch, signal: signals.Signal, samples: data.Samples
) -> types.Metrics:
  """What the optimal target asks for, and of how much it speaks.

  Args:
    batch: with the target.
    signal: that the target was made of.
    samples: what was sampled.
  """
  unknown = jnp.where(signal.known, 0.0, jax.nn.softmax(batch.target_logits))
  return numerics.across_devices(
    {
      "counted_tokens": numerics.average(
        batch.mask.astype(jnp.float32), samples.mask
      ),
      "target_residual_before": numerics.average(
        diagnostics.target_residual(batch.target_logits, batch.old_logits),
        batch.mask,
      ),
      "target_tail_mass": numerics.average(
        jnp.sum(unknown, axis=-1), batch.mask
      ),
    }
  )


def of_change(batch: data.TokenBatch, logits: Array) -> types.Metrics:
  """How far the epochs moved the policy.

  Args:
    batch: what they passed over, or some samples of it.
    logits: float[G, N, C, V], of the policy now.
  """
  log_prob = numerics.action_log_prob(logits, batch.action)
  quantiles = diagnostics.ratio_quantiles(
    log_prob - batch.old_log_prob, batch.mask, numerics.DEVICE_AXIS
  )
  return quantiles | numerics.across_devices(
    {
      "kl_old_new": numerics.average(
        losses.kl_divergence(batch.old_logits, logits), batch.mask
      ),
      "target_residual_after": numerics.average(
        diagnostics.target_residual(batch.target_logits, logits), batch.mask
      ),
    }
  )
