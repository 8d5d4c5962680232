"""Adapter from gymnax's in-graph environments to `Environment`."""

import functools

import jax
import jax.numpy as jnp

from lco_jax.environments import base


def make(name: str) -> base.Environment:
  """Wraps a discrete-action gymnax environment.

  Observations become float32; a discrete observation becomes its one-hot.

  Args:
    name: gymnax id, e.g. "CartPole-v1".

  Raises:
    ValueError: if gymnax has no such id, the environment's data is missing, its
      actions are not discrete, or its observations are not a single array.
  """
  # Imported here, because importing gymnax starts JAX's backends.
  import gymnax
  from gymnax.environments import spaces

  if name not in gymnax.registered_envs:
    raise ValueError(
      f"unknown environment {name!r}; gymnax has:"
      f" {', '.join(sorted(gymnax.registered_envs))}"
    )
  try:
    environment, params = gymnax.make(name)
  except OSError as error:
    raise ValueError(
      f"environment {name!r} cannot be built: {error}"
    ) from error
  action_space = environment.action_space(params)
  if not isinstance(action_space, spaces.Discrete):
    raise ValueError(
      f"environment {name!r} has actions {action_space};"
      " only discrete actions are supported"
    )
  space = environment.observation_space(params)
  if isinstance(space, spaces.Discrete):
    shape = (space.n,)
    encode = functools.partial(jax.nn.one_hot, num_classes=space.n)
  elif isinstance(space, spaces.Box):
    shape = tuple(space.shape)
    encode = functools.partial(jnp.asarray, dtype=jnp.float32)
  else:
    raise ValueError(
      f"environment {name!r} observes {space}; only one array is supported"
    )

  def reset(key):
    observation, state = environment.reset_env(key, params)
    return state, encode(observation)

  def step(key, state, action):
    observation, state, reward, terminated, _ = environment.step_env(
      key, state, action, params
    )
    return base.Transition(
      state=state,
      observation=encode(observation),
      reward=jnp.asarray(reward, jnp.float32),
      terminated=jnp.asarray(terminated, bool),
      truncated=jnp.asarray(environment.is_truncated(state, params), bool),
    )

  return base.Environment(
    name=name,
    observation_shape=shape,
    num_actions=action_space.n,
    max_episode_steps=int(params.max_steps_in_episode),
    reset=reset,
    step=step,
  )
