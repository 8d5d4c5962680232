"""Probe environments: each isolates one thing that a learner must get right.

| probe | what must work |
|---|---|
| value         | the value loss: one state, one outcome |
| observation   | the value depends on the observation |
| discount      | a reward one step later is discounted once |
| truncation    | a time limit is no end: bootstrap through it |
| action        | the better action is preferred |
| action_given_observation | ... depending on the observation |
| credit        | an action is credited with a later reward |

Because the answers are known, a failure names the broken part.
Source: the idea of probe environments, Jones 2021, "Debugging RL".
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax.environments import base

# Observations of the probes with two cases.
_SIGNS = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Probe:
  """A probe environment and its known answers.

  Attributes:
    environment: the environment.
    observations: float[K, 1], every observation from which an action is taken.
    values: γ → float[K], optimal values of these observations.
    actions: int[K], the optimal actions; −1 where any action will do.
  """

  environment: base.Environment
  observations: np.ndarray
  values: Callable[[float], np.ndarray]
  actions: np.ndarray


def _environment(
  name: str,
  outcome: Callable,
  num_actions: int,
  length: int = 1,
  random_observation: bool = False,
  truncates: bool = False,
) -> base.Environment:
  """An episode of `length` steps.

  The state is (sign, step, first action); the observation is
  sign · (1 + step), so that the steps can be told apart.

  Args:
    name: the probe's name.
    outcome: (sign, step, action, first_action) → reward.
    num_actions: A.
    length: steps in an episode.
    random_observation: whether the sign is drawn anew for each episode.
    truncates: whether the last step truncates rather than terminates.
  """

  def observe(sign, step):
    return jnp.reshape(sign * (1.0 + step.astype(jnp.float32)), (1,))

  def reset(key):
    sign = jax.random.rademacher(key, (), jnp.float32)
    if not random_observation:
      sign = jnp.ones_like(sign)
    step = jnp.int32(0)
    return (sign, step, jnp.int32(0)), observe(sign, step)

  def step(key, state, action):
    del key
    sign, step, first_action = state
    first_action = jnp.where(step == 0, action, first_action)
    reward = outcome(sign, step, action, first_action)
    step = step + 1
    ended = step >= length
    # A truncating probe is one endless state that is cut now and then.
    shown = jnp.int32(0) if truncates else step
    return base.Transition(
      state=(sign, step, first_action),
      observation=observe(sign, shown),
      reward=jnp.asarray(reward, jnp.float32),
      terminated=ended & (not truncates),
      truncated=ended & truncates,
    )

  return base.Environment(
    name=f"probe:{name}",
    observation_shape=(1,),
    num_actions=num_actions,
    max_episode_steps=length,
    reset=reset,
    step=step,
  )


def _column(*values: float) -> np.ndarray:
  return np.array(values, np.float32)[:, None]


def _value() -> Probe:
  environment = _environment("value", lambda *_: 1.0, num_actions=2)
  return Probe(
    environment, _column(1.0), lambda _: np.array([1.0]), np.array([-1])
  )


def _observation() -> Probe:
  environment = _environment(
    "observation",
    lambda sign, *_: sign,
    num_actions=2,
    random_observation=True,
  )
  return Probe(
    environment,
    _column(*_SIGNS),
    lambda _: np.array(_SIGNS),
    np.array([-1, -1]),
  )


def _discount() -> Probe:
  environment = _environment(
    "discount",
    lambda sign, step, *_: jnp.where(step == 1, 1.0, 0.0),
    num_actions=2,
    length=2,
  )
  return Probe(
    environment,
    _column(1.0, 2.0),
    lambda discount: np.array([discount, 1.0]),
    np.array([-1, -1]),
  )


def _truncation() -> Probe:
  environment = _environment(
    "truncation", lambda *_: 1.0, num_actions=2, length=2, truncates=True
  )
  return Probe(
    environment,
    _column(1.0),
    lambda discount: np.array([1.0 / (1.0 - discount)]),
    np.array([-1]),
  )


def _action() -> Probe:
  environment = _environment(
    "action",
    lambda sign, step, action, _: jnp.where(action == 1, 1.0, -1.0),
    num_actions=2,
  )
  return Probe(
    environment, _column(1.0), lambda _: np.array([1.0]), np.array([1])
  )


def _action_given_observation() -> Probe:
  environment = _environment(
    "action_given_observation",
    lambda sign, step, action, _: jnp.where(
      (action == 1) == (sign > 0), 1.0, -1.0
    ),
    num_actions=2,
    random_observation=True,
  )
  return Probe(
    environment,
    _column(*_SIGNS),
    lambda _: np.array([1.0, 1.0]),
    np.array([0, 1]),
  )


def _credit() -> Probe:
  environment = _environment(
    "credit",
    lambda sign, step, action, first_action: jnp.where(
      (step == 1) & (first_action == 1), 1.0, 0.0
    ),
    num_actions=2,
    length=2,
  )
  # The second step's value depends on the first action, which is optimal here.
  return Probe(
    environment,
    _column(1.0, 2.0),
    lambda discount: np.array([discount, 1.0]),
    np.array([1, -1]),
  )


PROBES: dict[str, Callable[[], Probe]] = {
  "value": _value,
  "observation": _observation,
  "discount": _discount,
  "truncation": _truncation,
  "action": _action,
  "action_given_observation": _action_given_observation,
  "credit": _credit,
}


def make(name: str) -> base.Environment:
  """Builds a probe environment by name.

  Raises:
    ValueError: if there is no such probe.
  """
  if name not in PROBES:
    raise ValueError(
      f"unknown probe environment {name!r}; known: {', '.join(PROBES)}"
    )
  return PROBES[name]().environment
