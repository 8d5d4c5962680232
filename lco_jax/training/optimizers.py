"""Optimizers by name: gradient clipping, then any optax optimizer."""

import inspect
import math

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


def make_own_rate(
  relative: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Adds a learning rate that is a part of the optimizer's state.

  Learners that one program is vmapped over can then have a rate each, set by
  `optax.tree.set(state, step_size=rate)`.

  Args:
    relative: an optimizer whose schedule is relative to the rate.
  """
  return optax.chain(
    relative, optax.inject_hyperparams(optax.scale)(step_size=1.0)
  )


def _takes_learning_rate(factory) -> bool:
  try:
    parameters = list(inspect.signature(factory).parameters)
  except (TypeError, ValueError):
    return False
  return parameters[:1] == ["learning_rate"]
