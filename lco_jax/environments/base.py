"""Interfaces of environments, in the graph and on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from lco_jax import types


class Transition(NamedTuple):
  """The result of one environment step, without automatic reset.

  Attributes:
    state: pytree, the environment's next state.
    observation: float[O] in that state, also if the episode ended.
    reward: float[].
    terminated: bool[], a terminal state was reached; its future value is 0.
    truncated: bool[], a time limit cut the episode; the future has a value.
  """

  state: Any
  observation: Array
  reward: Array
  terminated: Array
  truncated: Array


@dataclasses.dataclass(frozen=True)
class Environment:
  """A single environment as pure functions of explicit state.

  Attributes:
    name: id of the environment.
    observation_shape: O.
    num_actions: A.
    max_episode_steps: upper limit on an episode's length.
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
  """An environment that Python steps on the host, in batches of copies.

  Attributes:
    name: id of the environment.
    observation_shape: O.
    num_actions: A.
    make_copies: number of copies → gymnasium.vector.VectorEnv, which resets a
      copy in the same step as its episode ends.
    encode: raw observations of B copies → float32[B, O], on the host.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  make_copies: Callable[[int], Any]
  encode: Callable[[np.ndarray], np.ndarray]
