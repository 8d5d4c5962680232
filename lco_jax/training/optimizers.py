"""Optimizers by name: gradient clipping, then any optax optimizer."""

import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "linear", "cosine")


def make_schedule(
  name: str, learning_rate: float, num_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
  """Learning rate as a function of the optimizer step.

  Args:
    name: `constant`, or `linear` or `cosine` decay to 0.
    learning_rate: largest value, positive and finite.
    num_steps: optimizer steps until the end of training.
    warmup_steps: of them, steps of a linear rise before; Adam's first
      steps are several times as long as later ones, and a policy that is good
      already is lost by them.

  Raises:
    ValueError: if the name is unknown or a number is out of range.
  """
  if not (math.isfinite(learning_rate) and learning_rate > 0):
    raise ValueError(
      f"learning_rate must be positive and finite, got {learning_rate}"
    )
  if not 0 <= warmup_steps < num_steps:
    raise ValueError(
      f"learning_rate_warmup must be in [0, {num_steps}), the optimizer steps,"
      f" got {warmup_steps}"
    )
  rest = num_steps - warmup_steps
  if name == "constant":
    schedule = optax.constant_schedule(learning_rate)
  elif name == "linear":
    schedule = optax.linear_schedule(learning_rate, 0.0, rest)
  elif name == "cosine":
    schedule = optax.cosine_decay_schedule(learning_rate, rest)
  else:
    raise ValueError(
      f"learning_rate_schedule: unknown {name!r}; known: {', '.join(SCHEDULES)}"
    )
  if not warmup_steps:
    return schedule
  # The first step already moves: at a rate of 0 it would be spent for nothing.
  rise = optax.linear_schedule(
    learning_rate / (warmup_steps + 1), learning_rate, warmup_steps
  )
  return optax.join_schedules([rise, schedule], [warmup_steps])


def make_optimizer(
  name: str,
  schedule: optax.Schedule,
  max_gradient_norm: float | None,
  **options,
) -> optax.GradientTransformation:
  """Clips by global norm, then applies the named optax optimizer.

  Args:
    name: name of a function in optax whose first argument is learning_rate.
    schedule: the learning rate.
    max_gradient_norm: global norm to clip at, > 0; None for no clipping.
    **options: the optimizer's own keyword arguments.

  Raises:
    ValueError: if optax has no such optimizer, it does not take an option, it
      needs more than gradients, or the norm is out of range.
  """
  if max_gradient_norm is not None and not max_gradient_norm > 0:
    raise ValueError(
      f"max_gradient_norm must be positive, got {max_gradient_norm}"
    )
  factory = getattr(optax, name, None)
  if not callable(factory) or not _takes_learning_rate(factory):
    raise ValueError(f"optimizer: optax has no optimizer {name!r}")
  try:
    optimizer = factory(schedule, **options)
    example = {"w": jnp.zeros((2, 2))}
    jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p), example)
  except TypeError as error:
    raise ValueError(f"optimizer: {name!r} cannot be used: {error}") from error
  if max_gradient_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)


class OwnRateState(NamedTuple):
  """A learning rate as a part of the optimizer's state.

  Attributes:
    own_learning_rate: float32[].
  """

  own_learning_rate: jax.Array


def scale_by_own_rate() -> optax.GradientTransformation:
  """Scales updates by a learning rate that the state holds.

  As the last link of a chain whose schedule is relative, it lets the learners
  that one program is vmapped over have a rate each; see `with_own_rate`.
  """

  def update(updates, state, params=None):
    del params
    return optax.tree.scale(state.own_learning_rate, updates), state

  return optax.GradientTransformation(
    lambda params: OwnRateState(jnp.float32(1.0)), update
  )


def with_own_rate(opt_state: Any, learning_rate: jax.Array) -> Any:
  """The state of an optimizer with the learning rate of `scale_by_own_rate`.

  Args:
    opt_state: of a chain that ends with it.
    learning_rate: float32[].

  Raises:
    KeyError: if the chain has no such link.
  """
  return optax.tree.set(opt_state, own_learning_rate=learning_rate)


def _takes_learning_rate(factory) -> bool:
  try:
    parameters = list(inspect.signature(factory).parameters)
  except (TypeError, ValueError):
    return False
  return parameters[:1] == ["learning_rate"]
