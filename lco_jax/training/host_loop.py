"""Training on what the host collects: the same step, one update at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from lco_jax import types
from lco_jax.training import finiteness, program
from lco_jax.training import placement as placement_lib


class Collector(Protocol):
  """What collects on the host.

  Attributes:
    rollout: the last one, [devices, seeds, T, N, ...].
  """

  rollout: Any

  def collect(self, state: types.LearnerState) -> Any:
    """The rollout of the update that follows a state [devices, seeds, ...]."""
    ...

  def close(self) -> None:
    """Ends what runs beside."""
    ...


def make_programs(
  collector: Collector,
  task: program.Training,
  placement: placement_lib.Placement,
  lengths: Sequence[int],
) -> dict[int, Callable]:
  """The programs of `program.compile_chunks`, with a host that collects.

  Args:
    collector: of the run.
    task: what to train.
    placement: of the state.
    lengths: numbers of updates in a chunk.

  Returns:
    {length: program}; a program takes and consumes a state and returns (state,
    metrics [length, seeds] on the host). It ends with the first update that is
    not finite, the collector's rollout being that update's.
  """

  def learn_one(state, rollout):
    actor = task.follow(state.actor, rollout, state.update)
    return program.learn_step(task, state, actor, rollout)

  def learn(state, rollout):
    state, metrics = placement_lib.each_seed(learn_one)(state, rollout)
    return state, placement.all_seeds(metrics, axis=0)

  steps = {}  # By the rollout's shapes.

  def run(length, state):
    chunk = []
    for _ in range(length):
      rollout = collector.collect(state)
      shapes = tuple(leaf.shape for leaf in jax.tree.leaves(rollout))
      if shapes not in steps:
        steps[shapes] = placement.compile(
          learn,
          state,
          rollout,
          donate_argnums=0,
          long_reductions=task.long_reductions,
        )
      state, metrics = steps[shapes](state, rollout)
      chunk.append(placement.common(metrics))
      required = finiteness.always_finite(chunk[-1])
      if not all(np.isfinite(values).all() for values in required.values()):
        break
    return state, jax.tree.map(lambda *x: np.stack(x), *chunk)

  return {length: functools.partial(run, length) for length in set(lengths)}
