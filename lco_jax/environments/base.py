"""Environments as training sees them, in the graph and on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lco_jax import types

Array = jax.Array


class Transition(NamedTuple):
  """What one environment step returns; the environment does not reset itself.

  Attributes:
    state: pytree, the environment's next state.
    observation: float[O], seen in that state, also if the episode ended.
    reward: float[].
    terminated: bool[], the task reached an end: the future is worth nothing.
    truncated: bool[], a time limit cut the episode: the future has a value.
  """

  state: Any
  observation: Array
  reward: Array
  terminated: Array
  truncated: Array


@dataclasses.dataclass(frozen=True)
class Environment:
  """An environment as pure functions of explicit state, one copy at a time.

  Attributes:
    name: the id that it was made by.
    observation_shape: O.
    num_actions: A.
    max_episode_steps: bound on an episode's length.
    reset: key → (state, observation).
    step: (key, state, action int32[]) → Transition.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  max_episode_steps: int
  reset: Callable[[types.PRNGKey], tuple[Any, Array]]
  step: Callable[[types.PRNGKey, Any, Array], Transition]


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
  """An environment that Python steps on the host, many copies at a time.

  Attributes:
    name: the id that it was made by.
    observation_shape: O.
    num_actions: A.
    make_copies: number → a gymnasium.vector.VectorEnv of that many copies,
      which resets a copy in the step in which its episode ends.
    encode: observations of B copies as they come → float32[B, O], on the host.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  make_copies: Callable[[int], Any]
  encode: Callable[[np.ndarray], np.ndarray]
