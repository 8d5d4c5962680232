"""Continuous actions as bins: equally spaced values in each dimension."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class ActionBins:
  """Values that the bins of a continuous action stand for.

  Attributes:
    values: float32[D, bins], in the units of the action; from its lower bound
      to its upper one.
    shape: of the action, with D elements.
  """

  values: np.ndarray
  shape: tuple[int, ...]

  @property
  def num_actions(self) -> int:
    """Bins of a dimension."""
    return self.values.shape[1]

  @property
  def action_sizes(self) -> tuple[int, ...]:
    """Bins of each dimension; empty for a single one."""
    dimensions = len(self.values)
    return () if dimensions == 1 else (self.num_actions,) * dimensions

  def decode(self, action):
    """The continuous action of bins int[D], or int[] for one dimension.

    Works on arrays of NumPy and of jax.
    """
    chosen = (np.arange(self.num_actions) == action[..., None]) * self.values
    return chosen.sum(-1).reshape(self.shape)


def cut_into_bins(space, action_bins: int | None, name: str) -> ActionBins:
  """Cuts a continuous action space into bins.

  Args:
    space: a Box of gymnax or Gymnasium, with `low`, `high` and `shape`.
    action_bins: bins of each dimension, ≥ 2.
    name: of the environment, for errors.

  Raises:
    ValueError: if the number of bins is missing or too small, or the space is
      unbounded.
  """
  if action_bins is None:
    raise ValueError(
      f"environment {name!r} has continuous actions {space}: set action_bins to"
      " cut each dimension into bins"
    )
  if action_bins < 2:
    raise ValueError(f"action_bins must be ≥ 2, got {action_bins}")
  shape = tuple(space.shape)
  low, high = (
    np.broadcast_to(np.asarray(bound, np.float64), shape).reshape(-1)
    for bound in (space.low, space.high)
  )
  if not math.prod(shape) or not (np.isfinite(low) & np.isfinite(high)).all():
    raise ValueError(
      f"environment {name!r} has actions {space}; bins need finite bounds"
    )
  grid = np.linspace(low, high, action_bins, axis=-1)
  return ActionBins(grid.astype(np.float32), shape)


def refuse_bins(action_bins: int | None, name: str) -> None:
  """Refuses bins of actions that are discrete already.

  Raises:
    ValueError: if a number of bins is given.
  """
  if action_bins is not None:
    raise ValueError(
      f"action_bins: environment {name!r} has discrete actions; leave it None"
    )
