"""Running normalisation of observations and rewards.

Moments are over everything that was collected before the update under way, so
that a rollout is collected and learned from with the same numbers. They are
parts of the parameters without an optimizer, see `training.memory`: saved with
the policy, and applied wherever it acts.

    observation   (o − mean) / std, clipped to ±10
    reward        r / std of the discounted return so far, clipped to ±10

Source: Engstrom et al. 2020, arXiv:2005.12729 (both are common in PPO).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from lco_jax import numerics, types

OBSERVATIONS = "observation_moments"
RETURNS = "return_moments"
_LARGEST = 10.0

# {"count": float32[], "mean": float32[...], "variance": float32[...]}.
Moments = dict[str, Array]


def start(shape: tuple[int, ...]) -> Moments:
  """Moments of nothing: they change no value until something is added."""
  return {
    "count": jnp.float32(0),
    "mean": jnp.zeros(shape, jnp.float32),
    "variance": jnp.ones(shape, jnp.float32),
  }


def add(moments: Moments, values: Array) -> Moments:
  """Adds values of all devices to running moments.

  Args:
    moments: of numbers [...].
    values: float[T, N, ...], this device's share, under DATA_AXIS.

  Source: Chan et al. 1979, the parallel update of mean and variance.
  """
  axes, axis_name = (0, 1), numerics.DATA_AXIS
  added = numerics.psum(
    jnp.float32(values.shape[0] * values.shape[1]), axis_name
  )
  mean = numerics.psum(jnp.sum(values, axis=axes), axis_name) / added
  squares = jnp.sum(jnp.square(values - mean), axis=axes)
  squares = numerics.psum(squares, axis_name)
  count = moments["count"]
  total = count + added
  gap = mean - moments["mean"]
  # The variance of nothing, 1, has the weight 0.
  sums = moments["variance"] * count + squares
  sums += jnp.square(gap) * count * (added / total)
  return {
    "count": total,
    "mean": moments["mean"] + gap * (added / total),
    "variance": sums / total,
  }


def begin(
  params: Mapping[str, types.Params],
  observation_shape: tuple[int, ...],
  observations: bool,
  rewards: bool,
) -> dict[str, types.Params]:
  """Adds the moments that a training asks for to its first parameters."""
  parts = dict(params)
  if observations:
    parts[OBSERVATIONS] = start(observation_shape)
  if rewards:
    parts[RETURNS] = start(())
  return parts


def normalize_observation(
  params: Mapping[str, types.Params], observation: Array
) -> Array:
  """Normalises observations, if the parameters have their moments.

  Args:
    params: by part.
    observation: float[..., O].
  """
  if OBSERVATIONS not in params:
    return observation
  moments = params[OBSERVATIONS]
  lead = (1,) * (observation.ndim - moments["mean"].ndim)
  mean, variance = (
    moments[name].reshape(lead + moments[name].shape)
    for name in ("mean", "variance")
  )
  scaled = (observation - mean) * jax.lax.rsqrt(variance + 1e-8)
  return _bound(scaled, moments)


def normalize_reward(
  params: Mapping[str, types.Params], reward: Array
) -> Array:
  """Scales rewards, if the parameters have the moments of returns."""
  if RETURNS not in params:
    return reward
  scale = jax.lax.rsqrt(params[RETURNS]["variance"] + 1e-8)
  return _bound(reward * scale, params[RETURNS])


def _bound(values: Array, moments: Moments) -> Array:
  """Clips normalised values, but not before there are moments.

  What is not finite stays so: clipped, it would be a number like any other.
  """
  clips = (moments["count"] > 0) & jnp.isfinite(values)
  return jnp.where(clips, jnp.clip(values, -_LARGEST, _LARGEST), values)


def remember(
  params: Mapping[str, types.Params],
  observation: Array,
  discounted_return: Array | None,
) -> dict[str, types.Params]:
  """Adds a rollout to the moments that the parameters have.

  Args:
    params: by part.
    observation: float[T, N, O], this device's share.
    discounted_return: float[T, N], of the episodes so far; None without the
      moments of returns.
  """
  parts = dict(params)
  if OBSERVATIONS in parts:
    parts[OBSERVATIONS] = add(parts[OBSERVATIONS], observation)
  if RETURNS in parts:
    parts[RETURNS] = add(parts[RETURNS], discounted_return)
  return parts
