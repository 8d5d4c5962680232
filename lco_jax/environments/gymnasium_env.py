"""Gymnasium environments, stepped on the host.

Training uses them where no in-graph version exists. Evaluation uses them to
check policies trained in gymnax: its environments are re-implementations, these
are the originals.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lco_jax import checks
from lco_jax.environments import base, bins

# gymnax ids whose Gymnasium original has the same id and physics, and whether
# its actions are continuous.
TWINS = {
  "CartPole-v1": False,
  "Acrobot-v1": False,
  "MountainCar-v0": False,
  "Pendulum-v1": True,
}
# Steps, for environments without a limit: a bad policy might never terminate.
_TIME_LIMIT = 1000


def make(name: str, action_bins: int | None = None) -> base.HostEnvironment:
  """Wraps a Gymnasium environment.

  Box observations become float32, Discrete observations a one-hot vector and
  MultiDiscrete observations the concatenated one-hots of all components. An
  environment without a time limit is truncated after 1,000 steps.

  Args:
    name: an id in Gymnasium's registry; no module is imported to register it.
    action_bins: values of each dimension of a continuous action, ≥ 2; None for
      Discrete and MultiDiscrete ones.

  Raises:
    ValueError: if the id is unknown, the environment cannot be built, its
      actions and `action_bins` do not go together, or actions or observations
      are of another kind.
  """
  import gymnasium  # Imported here: in-graph runs do not need it.

  if name not in gymnasium.registry:
    raise ValueError(
      f"unknown environment 'gymnasium:{name}'"
      f"{checks.suggest(name, gymnasium.registry)}"
    )
  return wrap(
    functools.partial(gymnasium.make, name), f"gymnasium:{name}", action_bins
  )


def wrap(
  make_one: Callable[[], Any], name: str, action_bins: int | None = None
) -> base.HostEnvironment:
  """Wraps environments that a function makes.

  Args:
    make_one: makes a new gymnasium.Env.
    name: id of the environment.
    action_bins: as of `make`.

  Raises:
    ValueError: as of `make`, if the environment cannot be built or its spaces
      are not supported.
  """
  import gymnasium
  from gymnasium import spaces

  try:
    example = make_one()
  except Exception as error:  # Constructors may raise any exception.
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    raise ValueError(
      f"environment {name!r} cannot be built: {first_line}"
    ) from error
  actions, observations = example.action_space, example.observation_space
  limit = example.spec.max_episode_steps if example.spec else None
  example.close()
  num_actions, action_sizes, decode, chosen = _read_actions(
    actions, action_bins, name
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
        f"environment {name!r} observes {observations};"
        " MultiDiscrete must have one axis"
      )
    shape = (int(sizes.sum()),)
    encode = functools.partial(
      _encode_one_hot, sizes=sizes, start=np.atleast_1d(observations.start)
    )
  else:
    raise ValueError(
      f"environment {name!r} observes {observations};"
      " Box, Discrete and MultiDiscrete are supported"
    )

  def make_limited(**options: Any) -> gymnasium.Env:
    own = gymnasium.wrappers.TransformAction(
      make_one(**options), decode, chosen
    )
    # Some environments write every observation into the same array. A reset
    # must not overwrite the last observation of the episode before.
    own = gymnasium.wrappers.TransformObservation(
      own, copy.deepcopy, own.observation_space
    )
    if limit is None:
      own = gymnasium.wrappers.TimeLimit(own, _TIME_LIMIT)
    return own

  def make_copies(count: int) -> gymnasium.vector.VectorEnv:
    return gymnasium.vector.SyncVectorEnv(
      [make_limited] * count,
      autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )

  return base.HostEnvironment(
    name=name,
    observation_shape=tuple(shape),
    num_actions=num_actions,
    action_sizes=action_sizes,
    make_copies=make_copies,
    encode=encode,
    make_drawn=functools.partial(make_limited, render_mode="rgb_array"),
  )


def make_twin(environment: base.Environment) -> base.HostEnvironment | None:
  """Gymnasium's original of a gymnax environment, None if it has none.

  Continuous actions are cut into as many bins.
  """
  if environment.name not in TWINS:
    return None
  continuous = TWINS[environment.name]
  return make(environment.name, environment.num_actions if continuous else None)


def _read_actions(actions, action_bins: int | None, name: str):
  """(A, action_sizes, choice → action, space of choices) of an action space.

  Policies count choices from 0.
  """
  from gymnasium import spaces

  if isinstance(actions, spaces.Box):
    grid = bins.cut_into_bins(actions, action_bins, name)

    def decode(action):
      return grid.decode(np.asarray(action)).astype(actions.dtype)

    num_actions, sizes = grid.num_actions, grid.action_sizes
  elif isinstance(actions, spaces.Discrete | spaces.MultiDiscrete):
    bins.refuse_bins(action_bins, name)
    start = actions.start
    if isinstance(actions, spaces.Discrete):
      num_actions, sizes = int(actions.n), ()

      def decode(action):
        return int(action) + int(start)

    else:
      if actions.nvec.ndim > 1:
        raise ValueError(
          f"environment {name!r} has actions {actions}; MultiDiscrete must have"
          " one axis"
        )
      sizes = tuple(int(n) for n in actions.nvec)
      num_actions = max(sizes)

      def decode(action):
        return np.asarray(action, start.dtype) + start

  else:
    raise ValueError(
      f"environment {name!r} has actions {actions}; Discrete, MultiDiscrete and"
      " Box are supported"
    )
  chosen = (
    spaces.MultiDiscrete(sizes) if sizes else spaces.Discrete(num_actions)
  )
  return num_actions, sizes, decode, chosen


def _encode_one_hot(
  observation: np.ndarray, sizes: np.ndarray, start: np.ndarray
) -> np.ndarray:
  """int[B] or int[B, K] → float32[B, sum of the K sizes]."""
  values = np.reshape(observation, (len(observation), -1)) - start
  columns = values + np.concatenate([[0], np.cumsum(sizes)[:-1]])
  encoded = np.zeros((len(values), sizes.sum()), np.float32)
  np.put_along_axis(encoded, columns, 1.0, axis=1)
  return encoded
