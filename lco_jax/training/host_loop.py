"""Training on what the host collects: the same step, one update at a time."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from lco_jax import types
from lco_jax.training import finiteness, placement, program, transfers
from lco_jax.training import phases as phases_lib


class Collector(Protocol):
  """Collects rollouts on the host.

  Attributes:
    phases: of the update under way.
  """

  phases: phases_lib.Phases

  def collect(self, state: types.LearnerState) -> Any:
    """Collects the rollout [seeds, T, N, ...] that follows a learner state."""
    ...


def make_programs(
  collector: Collector,
  training: program.Training,
  mesh: Mesh,
  lengths: Sequence[int],
) -> dict[int, Callable]:
  """Makes the programs of `program.compile_chunks`, with a host that collects.

  Args:
    collector: of the run.
    training: what to train.
    mesh: that of the state.
    lengths: numbers of updates in a chunk.

  Returns:
    {length: program}; a program takes and consumes a state and returns (state,
    metrics [length, seeds] on the host, None). It ends with the first update
    that is not finite, and returns the rollout of that in place of None.
  """
  steps, counters = {}, {}  # By the rollout's shapes.

  def run(length, state):
    chunk, faulty = [], None
    for _ in range(length):
      rollout = collector.collect(state)
      leaves, structure = jax.tree.flatten(rollout)
      shapes = structure, *(leaf.shape for leaf in leaves)
      if shapes not in steps:
        traced = trace_learning(training, mesh, state, rollout)
        counters[shapes] = phases_lib.make_counter(
          traced.stage.jaxpr.jaxpr, mesh
        )
        steps[shapes] = traced.compile()
      phases = collector.phases
      with phases.measure(phases_lib.UPDATE):
        state, metrics = steps[shapes](state, rollout)
        metrics = transfers.to_host(metrics)
      phases.count(phases_lib.UPDATE, counters[shapes](0))
      chunk.append(metrics | phases.take(metrics, mesh))
      required = finiteness.always_finite(chunk[-1], training.counts)
      if not all(np.isfinite(values).all() for values in required.values()):
        faulty = rollout
        break
      del rollout  # Or two would be in memory while the next is collected.
    return state, jax.tree.map(lambda *x: np.stack(x), *chunk), faulty

  return {length: functools.partial(run, length) for length in set(lengths)}


def trace_learning(
  training: program.Training,
  mesh: Mesh,
  state: types.LearnerState,
  rollout: Any,
) -> placement.Traced:
  """Traces the learning of all seeds from a rollout.

  Args:
    training: what to train.
    mesh: that of the state.
    state: a learner state, read for its shapes.
    rollout: [seeds, T, N, ...], likewise.

  Returns:
    (state, rollout) → (state, metrics [seeds]); it consumes the state.
  """

  def learn(state, rollout):
    actor = training.follow(state.actor, rollout, state.update)
    return program.learn_step(training, state, actor, rollout)

  def learn_seeds(state, rollout):
    state, metrics = placement.each_seed(learn)(state, rollout)
    return state, placement.gather_seeds(metrics, axis=0)

  specs = placement.make_state_specs(state, mesh)
  return placement.trace(
    learn_seeds,
    mesh,
    (specs, placement.ROLLOUTS),
    (specs, placement.EVERYWHERE),
    state,
    rollout,
    donate_argnums=(0,),
    long_reductions=training.long_reductions,
  )
