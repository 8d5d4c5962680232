"""Gymnasium environments, stepped on the host.

Training uses them where no in-graph version exists. Evaluation uses them to
check policies trained in gymnax: its environments are re-implementations, these
are the originals.
"""

import difflib
import functools

import numpy as np

from lco_jax.environments import base

# gymnax ids whose Gymnasium original has the same id and physics.
TWINS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")
# Steps, for environments without a limit: a bad policy might never terminate.
_TIME_LIMIT = 1000


def make(name: str) -> base.HostEnvironment:
  """Wraps a discrete-action Gymnasium environment.

  Box observations become float32, Discrete observations a one-hot vector and
  MultiDiscrete observations the concatenated one-hots of all components. An
  environment without a time limit is truncated after 1,000 steps.

  Args:
    name: an id in Gymnasium's registry; no module is imported to register it.

  Raises:
    ValueError: if the id is unknown, the environment cannot be built, its
      actions are not discrete, or its observations are of another kind.
  """
  import gymnasium  # Imported here: in-graph runs do not need it.
  from gymnasium import spaces

  if name not in gymnasium.registry:
    close = difflib.get_close_matches(name, gymnasium.registry, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise ValueError(f"unknown environment 'gymnasium:{name}'{hint}")
  try:
    example = gymnasium.make(name)
  except Exception as error:  # Constructors may raise any exception.
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
      _encode_one_hot, sizes=sizes, start=np.atleast_1d(observations.start)
    )
  else:
    raise ValueError(
      f"environment 'gymnasium:{name}' observes {observations};"
      " Box, Discrete and MultiDiscrete are supported"
    )

  def make_copies(count: int) -> gymnasium.vector.VectorEnv:
    wrappers = [
      # Policies count actions from 0.
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


def _encode_one_hot(
  observation: np.ndarray, sizes: np.ndarray, start: np.ndarray
) -> np.ndarray:
  """int[B] or int[B, K] → float32[B, sum of the K sizes]."""
  values = np.reshape(observation, (len(observation), -1)) - start
  columns = values + np.concatenate([[0], np.cumsum(sizes)[:-1]])
  encoded = np.zeros((len(values), sizes.sum()), np.float32)
  np.put_along_axis(encoded, columns, 1.0, axis=1)
  return encoded
