"""Gymnasium's environments, stepped on the host.

For training where there is no in-graph twin, and for evaluation: the gymnax
environments that training uses are re-implementations; these are the originals,
so that a result does not rest on the twin.
"""

import difflib
import functools

import numpy as np

from lco_jax.environments import base

# gymnax ids whose Gymnasium original has the same id and the same physics.
TWINS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
# For environments that set themselves none; a lost policy would never end.
_TIME_LIMIT = 1000


def make(name: str) -> base.HostEnvironment:
  """Wraps a discrete-action Gymnasium environment.

  Box observations become float32, Discrete ones their one-hot, MultiDiscrete
  ones the one-hots of all components side by side. An environment without a
  time limit is truncated after 1,000 steps.

  Args:
    name: an id in Gymnasium's registry; nothing is imported on its behalf.

  Raises:
    ValueError: if the id is unknown, the environment cannot be built, its
      actions are not discrete or its observations of another kind.
  """
  import gymnasium  # Here, so that runs in the graph start without it.
  from gymnasium import spaces

  if name not in gymnasium.registry:
    close = difflib.get_close_matches(name, gymnasium.registry, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise ValueError(f"unknown environment 'gymnasium:{name}'{hint}")
  try:
    example = gymnasium.make(name)
  except Exception as error:  # Whatever an environment's constructor raises.
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(
      f"environment 'gymnasium:{name}' cannot be built: {first_line}"
    ) from error
  actions, observations = example.action_space, example.observation_space
  limit = example.spec.max_episode_steps
  example.close()
  if not isinstance(actions, spaces.Discrete):
    raise ValueError(
      f"environment 'gymnasium:{name}' has actions {actions};"
      " only discrete actions are supported"
    )
  if isinstance(observations, spaces.Box):
    shape = observations.shape
    encode = functools.partial(np.asarray, dtype=np.float32)
  elif isinstance(observations, spaces.Discrete | spaces.MultiDiscrete):
    sizes = np.atleast_1d(
      observations.n
      if isinstance(observations, spaces.Discrete)
      else observations.nvec
    )
    if sizes.ndim > 1:
      raise ValueError(
        f"environment 'gymnasium:{name}' observes {observations};"
        " MultiDiscrete must have one axis"
      )
    shape = (int(sizes.sum()),)
    encode = functools.partial(
      _one_hots, sizes=sizes, start=np.atleast_1d(observations.start)
    )
  else:
    raise ValueError(
      f"environment 'gymnasium:{name}' observes {observations};"
      " Box, Discrete and MultiDiscrete are supported"
    )

  def make_copies(count: int) -> gymnasium.vector.VectorEnv:
    wrappers = [
      # Actions count from 0 here.
      functools.partial(
        gymnasium.wrappers.TransformAction,
        func=lambda action: int(action) + int(actions.start),
        action_space=spaces.Discrete(actions.n),
      )
    ]
    if limit is None:
      wrappers.append(
        functools.partial(
          gymnasium.wrappers.TimeLimit, max_episode_steps=_TIME_LIMIT
        )
      )
    return gymnasium.make_vec(
      name,
      num_envs=count,
      vectorization_mode="sync",
      vector_kwargs={
        "autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP
      },
      wrappers=wrappers,
    )

  return base.HostEnvironment(
    name=f"gymnasium:{name}",
    observation_shape=tuple(shape),
    num_actions=int(actions.n),
    make_copies=make_copies,
    encode=encode,
  )


def _one_hots(
  observation: np.ndarray, sizes: np.ndarray, start: np.ndarray
) -> np.ndarray:
  """int[B] or int[B, K] → float32[B, sum of the K sizes]."""
  values = np.reshape(observation, (len(observation), -1)) - start
  columns = values + np.concatenate([[0], np.cumsum(sizes)[:-1]])
  encoded = np.zeros((len(values), sizes.sum()), np.float32)
  np.put_along_axis(encoded, columns, 1.0, axis=1)
  return encoded
