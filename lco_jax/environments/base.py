"""Interfaces of environments, in the graph and on the host."""

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from lco_jax import checks, types
from lco_jax.checks import setting


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of how an environment is presented to the policy."""

  action_bins: int | None = setting(
    None,
    "values of each dimension of a continuous action; None for discrete ones",
    at_least=2,
  )

  def __post_init__(self):
    checks.check_settings(self)


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
    num_actions: A, choices of an action; the most of them in any dimension if
      it has several.
    max_episode_steps: upper limit on an episode's length. `step` must set
      `truncated` there; an evaluation ends there.
    reset: key → (state, observation).
    step: (key, state, action int32[*action_shape]) → Transition.
    action_sizes: choices of each of the action's D dimensions, which are chosen
      independently; empty for an action that is one choice.
    draw: (states, returns so far) → their images uint8[H, W, 3], on the host;
      None if it cannot be drawn.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  max_episode_steps: int
  reset: Callable[[types.PRNGKey], tuple[Any, Array]]
  step: Callable[[types.PRNGKey, Any, Array], Transition]
  action_sizes: tuple[int, ...] = ()
  draw: Callable[[Sequence, Sequence[float]], Iterator[np.ndarray]] | None = (
    None
  )


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
  """An environment that Python steps on the host, in batches of copies.

  Attributes:
    name: id of the environment.
    observation_shape: O.
    num_actions: A, as of Environment.
    make_copies: number of copies → gymnasium.vector.VectorEnv, which resets a
      copy in the same step as its episode ends.
    encode: raw observations of B copies → float32[B, O], on the host.
    action_sizes: as of Environment.
    make_drawn: makes a gymnasium.Env whose render() returns images. It raises
      what gymnasium raises if the environment cannot be drawn.
  """

  name: str
  observation_shape: tuple[int, ...]
  num_actions: int
  make_copies: Callable[[int], Any]
  encode: Callable[[np.ndarray], np.ndarray]
  action_sizes: tuple[int, ...] = ()
  make_drawn: Callable[[], Any] | None = None


def check_environment(environment: Environment) -> None:
  """Checks what an environment's functions return, without running them.

  Raises:
    ValueError: naming what is wrong, and what it must be.
  """
  name = environment.name
  checks.check_number(
    f"environment {name}: num_actions", environment.num_actions, at_least=1
  )
  checks.check_number(
    f"environment {name}: max_episode_steps",
    environment.max_episode_steps,
    at_least=1,
  )
  key = jax.random.key(0)
  made = _trace(name, "reset", environment.reset, key)
  if not (isinstance(made, tuple) and len(made) == 2):
    raise ValueError(
      f"environment {name}: reset must return (state, observation), got"
      f" {_describe(made)}"
    )
  state, observation = made
  sizes = environment.action_sizes
  action = jax.ShapeDtypeStruct((len(sizes),) if sizes else (), np.int32)
  found = _trace(name, "step", environment.step, key, state, action)
  if not isinstance(found, Transition):
    raise ValueError(
      f"environment {name}: step must return a Transition, got"
      f" {type(found).__name__}"
    )
  scalar = jax.ShapeDtypeStruct((), np.float32)
  flag = jax.ShapeDtypeStruct((), np.bool_)
  seen = jax.ShapeDtypeStruct(environment.observation_shape, np.float32)
  for where, value, wanted in (
    ("reset: observation", observation, seen),
    ("step: observation", found.observation, seen),
    ("step: reward", found.reward, scalar),
    ("step: terminated", found.terminated, flag),
    ("step: truncated", found.truncated, flag),
    ("step: state", found.state, state),
  ):
    if _describe(value) != _describe(wanted):
      raise ValueError(
        f"environment {name}: {where} must be {_describe(wanted)}, got"
        f" {_describe(value)}"
      )


def _trace(
  name: str, what: str, function: Callable[..., Any], *arguments: Any
) -> Any:
  """Finds the shapes of what a function of an environment returns.

  Raises:
    ValueError: with the line of the user's code that fails.
  """
  try:
    return jax.eval_shape(function, *arguments)
  except Exception as error:  # The user's code may raise any exception.
    line = next(iter(str(error).splitlines()), "")
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if code and f.filename == code.co_filename]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
    hint = ""
    if isinstance(error, jax.errors.TracerBoolConversionError):
      hint = "; in place of if, and, or take jnp.where, &, |"
    raise ValueError(
      f"environment {name}: {what}: {type(error).__name__}: {line}{place}{hint}"
    ) from error


def _describe(tree: Any) -> str:
  """Describes a pytree of arrays by its structure, dtypes and shapes."""
  described = jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree)
  return str(described).replace("'", "")


def logits_shape(environment: Environment | HostEnvironment) -> tuple[int, ...]:
  """Shape of the logits of one action: (A,), or (D, A)."""
  sizes = environment.action_sizes
  return (*((len(sizes),) if sizes else ()), environment.num_actions)


def legal_actions(
  environment: Environment | HostEnvironment,
) -> np.ndarray | None:
  """Choices that exist, bool[D, A]; None where all do."""
  sizes = np.asarray(environment.action_sizes, int)
  if (sizes == environment.num_actions).all():
    return None
  return np.arange(environment.num_actions) < sizes[:, None]
