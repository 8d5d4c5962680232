"""Adapter from gymnax's in-graph environments to `Environment`."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import checks
from lco_jax.environments import base, bins


def make(
  name: str,
  action_bins: int | None = None,
  registered: Sequence[str] = (),
) -> base.Environment:
  """Wraps a gymnax environment.

  Observations become float32; a discrete observation becomes its one-hot.

  Args:
    name: gymnax id, e.g. "CartPole-v1".
    action_bins: values of each dimension of a continuous action, ≥ 2; None for
      discrete ones.
    registered: names that are not gymnax's, for the error.

  Raises:
    ValueError: if gymnax has no such id, the environment's data is missing, its
      actions and `action_bins` do not go together, or its observations are not
      a single array.
  """
  # Imported here, because importing gymnax starts JAX's backends.
  import gymnax

  if name not in gymnax.registered_envs:
    raise ValueError(
      f"unknown environment {name!r}"
      f"{checks.suggest(name, [*registered, *gymnax.registered_envs])};"
      f" registered: {', '.join(registered) or 'none (plug-ins register)'};"
      f" gymnax has: {', '.join(sorted(gymnax.registered_envs))}"
    )
  try:
    environment, params = gymnax.make(name)
  except OSError as error:
    raise ValueError(
      f"environment {name!r} cannot be built: {error}"
    ) from error
  return wrap(environment, params, name, action_bins)


def wrap(
  environment: Any, params: Any, name: str, action_bins: int | None = None
) -> base.Environment:
  """Wraps an environment that has gymnax's interface.

  Args:
    environment: has reset_env, step_env, is_truncated, action_space and
      observation_space.
    params: its parameters, with max_steps_in_episode.
    name: id of the environment.
    action_bins: as of `make`.

  Raises:
    ValueError: as of `make`, if its spaces are not supported.
  """
  from gymnax.environments import spaces

  action_space = environment.action_space(params)
  if isinstance(action_space, spaces.Discrete):
    bins.refuse_bins(action_bins, name)
    num_actions, action_sizes, decode = action_space.n, (), None
  elif isinstance(action_space, spaces.Box):
    grid = bins.cut_into_bins(action_space, action_bins, name)
    num_actions, action_sizes = grid.num_actions, grid.action_sizes
    decode = grid.decode
  else:
    raise ValueError(
      f"environment {name!r} has actions {action_space};"
      " Discrete and Box are supported"
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
      key, state, action if decode is None else decode(action), params
    )
    return base.Transition(
      state=state,
      observation=encode(observation),
      # Some environments return them with an axis of one.
      reward=jnp.asarray(reward, jnp.float32).reshape(()),
      terminated=jnp.asarray(terminated, bool).reshape(()),
      truncated=jnp.asarray(
        environment.is_truncated(state, params), bool
      ).reshape(()),
    )

  return base.Environment(
    name=name,
    observation_shape=shape,
    num_actions=num_actions,
    action_sizes=action_sizes,
    max_episode_steps=int(params.max_steps_in_episode),
    reset=reset,
    step=step,
    draw=functools.partial(_draw, environment, params),
  )


def _draw(
  environment: Any,
  params: Any,
  states: Sequence[Any],
  returns: Sequence[float],
) -> Iterator[np.ndarray]:
  """Draws states with gymnax's own visualizer, as images uint8[H, W, 3].

  Raises:
    ValueError: if gymnax cannot draw this environment.
  """
  import matplotlib

  matplotlib.use("Agg")
  from gymnax.visualize import visualizer

  drawn = visualizer.Visualizer(environment, params, states, returns)
  drawn.init()
  if not hasattr(drawn, "im"):
    raise ValueError(f"gymnax cannot draw {environment.name}")
  for index in range(len(states)):
    drawn.update(index)
    drawn.fig.canvas.draw()
    yield np.array(drawn.fig.canvas.buffer_rgba())[..., :3]
