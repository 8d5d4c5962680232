"""Probe environments, each testing a single ability of a learner.

| probe | tested ability |
|---|---|
| value         | fits the value of one state with one outcome |
| observation   | makes the value depend on the observation |
| discount      | discounts a reward one step later once |
| truncation    | bootstraps through a time limit |
| action        | prefers the better action |
| action_given_observation | prefers it depending on the observation |
| credit        | credits an action with a later reward |
| dimensions    | prefers the better choice in each dimension of an action |

The answers are known, so a failure identifies the broken part.
Source: Jones 2021, "Debugging RL" (probe environments).
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
    observations: float[K, 1], all observations that require an action.
    values: γ → float[K], optimal values of these observations.
    actions: int[K], or [K, D], the optimal actions; −1 where all actions are
      optimal.
  """

  environment: base.Environment
  observations: np.ndarray
  values: Callable[[float], np.ndarray]
  actions: np.ndarray


def _make_environment(
  name: str,
  outcome: Callable,
  num_actions: int,
  length: int = 1,
  random_observation: bool = False,
  truncates: bool = False,
  action_sizes: tuple[int, ...] = (),
) -> base.Environment:
  """Makes an environment with episodes of `length` steps.

  The state is (sign, step, first action). The observation, sign · (1 + step),
  identifies the step.

  Args:
    name: the probe's name.
    outcome: (sign, step, action, first_action) → reward.
    num_actions: A.
    length: steps in an episode.
    random_observation: whether each episode draws a new sign.
    truncates: whether the last step truncates instead of terminating.
    action_sizes: choices of each dimension of an action; empty for a single
      choice.
  """

  def observe(sign, step):
    return jnp.reshape(sign * (1.0 + step.astype(jnp.float32)), (1,))

  def reset(key):
    sign = jax.random.rademacher(key, (), jnp.float32)
    if not random_observation:
      sign = jnp.ones_like(sign)
    step = jnp.int32(0)
    no_action = jnp.zeros(
      (len(action_sizes),) if action_sizes else (), jnp.int32
    )
    return (sign, step, no_action), observe(sign, step)

  def step(key, state, action):
    del key
    sign, step, first_action = state
    first_action = jnp.where(step == 0, action, first_action)
    reward = outcome(sign, step, action, first_action)
    step = step + 1
    ended = step >= length
    # A truncating probe has a single endless state.
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
    action_sizes=action_sizes,
  )


def _column(*values: float) -> np.ndarray:
  return np.array(values, np.float32)[:, None]


def _value() -> Probe:
  environment = _make_environment("value", lambda *_: 1.0, num_actions=2)
  return Probe(
    environment, _column(1.0), lambda _: np.array([1.0]), np.array([-1])
  )


def _observation() -> Probe:
  environment = _make_environment(
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
  environment = _make_environment(
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
  environment = _make_environment(
    "truncation", lambda *_: 1.0, num_actions=2, length=2, truncates=True
  )
  return Probe(
    environment,
    _column(1.0),
    lambda discount: np.array([1.0 / (1.0 - discount)]),
    np.array([-1]),
  )


def _action() -> Probe:
  environment = _make_environment(
    "action",
    lambda sign, step, action, _: jnp.where(action == 1, 1.0, -1.0),
    num_actions=2,
  )
  return Probe(
    environment, _column(1.0), lambda _: np.array([1.0]), np.array([1])
  )


def _action_given_observation() -> Probe:
  environment = _make_environment(
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
  environment = _make_environment(
    "credit",
    lambda sign, step, action, first_action: jnp.where(
      (step == 1) & (first_action == 1), 1.0, 0.0
    ),
    num_actions=2,
    length=2,
  )
  # The second step's value assumes the optimal first action.
  return Probe(
    environment,
    _column(1.0, 2.0),
    lambda discount: np.array([discount, 1.0]),
    np.array([1, -1]),
  )


def _dimensions() -> Probe:
  best = np.array([[0, 1], [2, 0]])
  environment = _make_environment(
    "dimensions",
    lambda sign, step, action, _: jnp.mean(
      jnp.where(action == jnp.where(sign > 0, best[1], best[0]), 1.0, -1.0)
    ),
    num_actions=3,
    random_observation=True,
    action_sizes=(3, 2),
  )
  return Probe(
    environment, _column(*_SIGNS), lambda _: np.array([1.0, 1.0]), best
  )


PROBES: dict[str, Callable[[], Probe]] = {
  "value": _value,
  "observation": _observation,
  "discount": _discount,
  "truncation": _truncation,
  "action": _action,
  "action_given_observation": _action_given_observation,
  "credit": _credit,
  "dimensions": _dimensions,
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
