"""The start of a run: from nothing, or from a checkpoint."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lco_jax import types
from lco_jax.runs import checkpointing
from lco_jax.training import placement, program, transfers


@dataclasses.dataclass(frozen=True)
class Start:
  """The start of a run, new or resumed; from `begin` or `resume`.

  Attributes:
    seeds: one run each, side by side; the same one again for another rate.
    mesh: that seeds and streams are divided over.
    update: completed updates.
    state: the learner state, on the mesh; consumed by the run.
    train_seconds: of training that it took to get here.
    setup_seconds: that it took to make the state.
  """

  seeds: Sequence[int]
  mesh: Mesh
  update: int
  state: types.LearnerState
  train_seconds: float
  setup_seconds: float


def begin(
  training: program.Training,
  seeds: Sequence[int],
  mesh: Mesh,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> Start:
  """Makes the start of a new run.

  Args:
    training: what to train.
    seeds: one run each.
    mesh: that seeds and streams are divided over.
    given: {part: parameters [seeds, ...]} to begin with, as of
      `program.initial_state`.
    learning_rates: one for each of the seeds, as of `program.initial_state`.
  """
  started = time.perf_counter()
  state = program.initial_state(training, seeds, mesh, given, learning_rates)
  state = jax.block_until_ready(state)
  return Start(seeds, mesh, 0, state, 0.0, time.perf_counter() - started)


def resume(
  training: program.Training,
  seeds: Sequence[int],
  mesh: Mesh,
  checkpoints: checkpointing.Checkpoints,
  update: int | None = None,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> Start:
  """Makes the start of a run that goes on from a checkpoint.

  Arguments are those of `begin`, with any mesh, as a run may continue on other
  devices, and the update of the checkpoint to take, which removes newer ones.
  None takes the newest, or the beginning if the run ended before its first.

  Raises:
    CheckpointError: if the checkpoint cannot be used.
  """
  if placement.divides_parameters(mesh.shape):
    return _resume_parts(
      training, seeds, mesh, checkpoints, update, given, learning_rates
    )
  start = begin(training, seeds, mesh, given, learning_rates)
  state, seconds, done = transfers.to_host(start.state), 0.0, 0
  # Only the first process need see the checkpoints.
  if jax.process_index() == 0 and (update is not None or checkpoints.steps()):
    done, state, notes = checkpoints.restore(state, update)
    checkpoints.remove_after(done)  # They belong to a course that ends here.
    seconds = notes["train_seconds"]
  # Not that of the state: a learner may have stayed behind, see `run`.
  done, state = transfers.from_first_process((np.asarray(done), state))
  return dataclasses.replace(
    start,
    update=int(done),
    state=transfers.to_devices(
      state, mesh, placement.make_state_specs(state, mesh)
    ),
    train_seconds=seconds,
  )


def _resume_parts(
  training: program.Training,
  seeds: Sequence[int],
  mesh: Mesh,
  checkpoints: checkpointing.Checkpoints,
  update: int | None,
  given: Mapping[str, types.Params] | None,
  learning_rates: Sequence[float] | None,
) -> Start:
  """Resumes on a mesh that divides the parameters: each device reads its part.

  Arguments are those of `resume`. All processes must see the checkpoints.
  """
  started = time.perf_counter()
  steps = checkpoints.steps()
  if not transfers.all_agree(steps):
    raise checkpointing.CheckpointError(
      f"{checkpoints.directory}: process {jax.process_index()} sees the"
      f" checkpoints {', '.join(map(str, steps)) or 'none'}, another process"
      " sees others; take a directory that all processes share"
    )
  if update is None and not steps:
    return begin(training, seeds, mesh, given, learning_rates)
  state = program.describe_state(
    training, len(seeds), mesh, given, learning_rates
  )
  specs = placement.make_state_specs(state, mesh)
  done, state, notes = checkpoints.restore(
    transfers.describe(state, mesh, specs), update, together=True
  )
  if jax.process_index() == 0:
    checkpoints.remove_after(done)
  return Start(
    seeds,
    mesh,
    done,
    state,
    notes["train_seconds"],
    time.perf_counter() - started,
  )
