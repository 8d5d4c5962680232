"""Runs a training from the host: chunk by chunk, metrics out, progress on."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lco_jax import types
from lco_jax.runs import (
  checkpointing,
  fault_replay,
  metric_writers,
  run_log,
  starts,
)
from lco_jax.training import (
  finiteness,
  host_loop,
  placement,
  program,
  transfers,
)


class StoppedError(Exception):
  """The run was asked to stop, and its state is saved."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a finished run.

  Attributes:
    params: {part: parameters [seeds, ...]}, on the host; on the mesh, if that
      divides them.
    total_steps: environment steps, or samples, of each seed.
    compile_seconds: initialising and compiling.
    train_seconds: from the first update to the last, writing included, over
      all processes that worked on it.
    steps_per_second: those of all seeds in a second of training.
    timings: {metric of `phases`: its median over the updates of this process},
      where the host collects.
  """

  params: dict[str, types.Params]
  total_steps: int
  compile_seconds: float
  train_seconds: float
  steps_per_second: float
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Checkup(NamedTuple):
  """An action between chunks that reads the state.

  Attributes:
    is_due: completed updates → whether to act there.
    act: (completed updates, state on the mesh); it must not change the state.
      All processes call it.
  """

  is_due: Callable[[int], bool]
  act: Callable[[int, types.LearnerState], None]


class Saver:
  """Saves states from time to time, and knows how long training has taken.

  Of several processes all make the same calls. Each writes its parts of a state
  whose parameters are divided; of another one the first writes all.
  """

  def __init__(
    self,
    checkpoints: checkpointing.Checkpoints | None = None,
    every_seconds: float = 30.0,
  ):
    """Saves to checkpoints, None for nowhere, at most so often."""
    self._checkpoints, self._every_seconds = checkpoints, every_seconds
    self.start_clock(0.0)

  def start_clock(self, train_seconds: float) -> None:
    """Starts the clock, at the seconds of training that a run took before."""
    self._saved = time.perf_counter()
    self._started = self._saved - train_seconds

  @property
  def train_seconds(self) -> float:
    """Seconds of training by now."""
    return time.perf_counter() - self._started

  @property
  def is_due(self) -> bool:
    """Whether the last save was long enough ago."""
    return time.perf_counter() - self._saved >= self._every_seconds

  def save(self, update: int, state: types.LearnerState) -> None:
    """Saves the state after an update; raises CheckpointError if it cannot."""
    if self._checkpoints is not None:
      divided = placement.is_divided(state)
      if not divided:
        state = transfers.to_host(state)
      if divided or jax.process_index() == 0:
        notes = {"train_seconds": self.train_seconds}
        self._checkpoints.save(update, state, notes, together=divided)
    self._saved = time.perf_counter()


def run(
  training: program.Training,
  start: starts.Start,
  num_updates: int,
  writers: Sequence[metric_writers.MetricWriter],
  *,
  collector: host_loop.Collector | None = None,
  saver: Saver | None = None,
  checkup: Checkup | None = None,
  faults: checkpointing.Checkpoints | None = None,
  past_faults: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
  updates_per_chunk: int | None = None,
  profile: pathlib.Path | None = None,
  show_progress: bool = True,
) -> Result:
  """Trains all seeds to the end.

  While devices compute a chunk, the host writes the metrics of the one before.
  Of several processes all run this, and the first alone writes and shows; what
  each of them saves says `Saver`.

  Args:
    training: what to train.
    start: from `starts.begin` or `starts.resume`.
    num_updates: updates of each seed.
    writers: take the metrics of each chunk; closed at the end. Empty in all
      processes but the first.
    collector: what collects, if that is on the host.
    saver: saves states between chunks, and at the end; None for no saving.
    checkup: acts between chunks, and at the end, after what is saved there.
    faults: where an update that is not finite is saved, for `load_fault`.
    past_faults: whether to go on when an update is not finite: its learner then
      stays as it was before, and has no metrics from there on.
    should_stop: asked between chunks; if so in any process, the state is saved
      at once.
    updates_per_chunk: updates in a compiled chunk; None chooses.
    profile: directory for a trace of the second chunk (or the only one), by
      `jax.profiler`; None for no trace.
    show_progress: whether to draw a progress bar on standard error.

  Raises:
    NonFiniteError: if anything in an update is not finite, naming the first
      such update and what of it. It is not applied; those before are written.
      Not if it goes on past faults.
    CheckpointError: if a checkpoint cannot be written.
    StoppedError: if asked to.
  """
  began = time.perf_counter()
  saver = saver or Saver()
  latest = _Chunk({}, start.state)
  log = run_log.RunLog(
    training, start, num_updates, writers, show_progress, past_faults
  )
  with contextlib.closing(log):
    lengths = program.chunk_lengths(
      num_updates - start.update,
      updates_per_chunk or program.default_chunk_length(num_updates),
    )
    programs = _compile(training, start, lengths, collector, profile)
    compile_seconds = start.setup_seconds + time.perf_counter() - began
    saver.start_clock(start.train_seconds)
    log.start_clock()
    try:
      for latest in _train(
        start, lengths, programs, saver, checkup, should_stop
      ):
        log.write(latest.metrics)
    except finiteness.NonFiniteError as error:
      raise _explain(error, training, latest, faults) from error
    train_seconds = saver.train_seconds
  total_steps = num_updates * training.steps_per_update
  params = latest.state.params
  if not placement.divides_parameters(start.mesh.shape):
    params = transfers.to_host(params)
  return Result(
    params=params,
    total_steps=total_steps,
    compile_seconds=compile_seconds,
    train_seconds=train_seconds,
    steps_per_second=total_steps * len(start.seeds) / train_seconds,
    timings=log.summarize_timings(),
  )


def load_fault(
  faults: checkpointing.Checkpoints,
  training: program.Training,
  mesh: Mesh,
  blank_rollout: Any | None = None,
) -> tuple[int, types.LearnerState, Any, str]:
  """Reads what `run` saved of an update that is not finite.

  Args:
    faults: as given to `run`.
    training: what was trained.
    mesh: any mesh for one seed.
    blank_rollout: what a rollout looks like, if the host collected it.

  Returns:
    (seed, state before the update, rollout, what was found); the state is of
    one seed, on the host, without the seeds' axis.

  Raises:
    CheckpointError: if there is none, or it cannot be used.
  """
  state = program.initial_state(training, (0,), mesh)
  state = _take_seed(transfers.to_host(state), 0)
  if blank_rollout is None:
    blank_rollout = fault_replay.collect(training, state)
  like = {"state": state, "rollout": blank_rollout}
  _, saved, notes = faults.restore(like)
  return notes["seed"], saved["state"], saved["rollout"], notes["fault"]


class _Chunk(NamedTuple):
  """The outcome of a chunk.

  Attributes:
    metrics: {name: float[updates, seeds]}, on the host.
    state: the newest learner state, maybe that after a later chunk.
    faulty: rollout of an update of it that is not finite, if the host collected
      it; else None.
  """

  metrics: dict[str, np.ndarray]
  state: types.LearnerState
  faulty: Any | None = None


def _compile(
  training: program.Training,
  start: starts.Start,
  lengths: Sequence[int],
  collector: host_loop.Collector | None,
  profile: pathlib.Path | None,
) -> list[Callable]:
  """Compiles the program of each chunk; one of them leaves a trace."""
  if collector is None:
    programs = program.compile_chunks(
      training, start.mesh, start.state, lengths
    )
  else:
    programs = host_loop.make_programs(collector, training, start.mesh, lengths)
  chunks = [programs[length] for length in lengths]
  if profile is not None and chunks:
    traced = min(1, len(chunks) - 1)
    chunks[traced] = functools.partial(_trace, chunks[traced], profile)
  return chunks


def _trace(chunk: Callable, profile: pathlib.Path, state: types.LearnerState):
  """Runs a chunk to its end and writes a trace of it."""
  with jax.profiler.trace(str(profile)):
    return jax.block_until_ready(chunk(state))


def _train(
  start: starts.Start,
  lengths: Sequence[int],
  programs: Sequence[Callable],
  saver: Saver,
  checkup: Checkup | None,
  should_stop: Callable[[], bool],
) -> Iterator[_Chunk]:
  """Trains chunk by chunk, and saves the state from time to time.

  Dispatches a chunk before it yields the metrics of the previous one: devices
  work while they are written. All are written before a save or a checkup.
  """
  has_checkup = checkup.is_due if checkup else lambda done: False
  state, done, waiting = start.state, start.update, None
  for length, chunk in zip(lengths, programs, strict=True):
    stop, due = transfers.any_process(should_stop(), saver.is_due)
    if (stop or due or has_checkup(done)) and waiting is not None:
      yield _Chunk(transfers.to_host(waiting), state)
      waiting = None
    if stop or due:
      saver.save(done, state)
    if stop:
      total = start.update + sum(lengths)
      raise StoppedError(f"stopped after update {done} of {total}")
    if has_checkup(done):
      checkup.act(done, state)
    state, metrics, *faulty = chunk(state)
    if waiting is not None:
      yield _Chunk(transfers.to_host(waiting), state)
    waiting = metrics
    if faulty:  # The host collected, so that the chunk has ended already.
      yield _Chunk(metrics, state, *faulty)
      waiting = None
    done += length
  if waiting is not None:
    yield _Chunk(transfers.to_host(waiting), state)
  saver.save(done, state)
  if has_checkup(done):
    checkup.act(done, state)


def _explain(
  error: finiteness.NonFiniteError,
  training: program.Training,
  latest: _Chunk,
  faults: checkpointing.Checkpoints | None,
) -> finiteness.NonFiniteError:
  """Runs the failed update again, to say what of it is not finite first.

  The seed's state is the one before that update, however many steps the program
  went on for; see `program.train_step`. A state whose parameters are divided
  would not fit on one device, and is not run again.
  """
  if placement.is_divided(latest.state):
    return error
  before = _take_seed(transfers.to_host(latest.state), error.position)
  if latest.faulty is None:
    rollout = fault_replay.collect(training, before)
  else:
    rollout = _take_seed(transfers.to_host(latest.faulty), error.position)
  what = str(error).partition(": ")[2]
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # Too large for one.
    record = fault_replay.replay(training, before, rollout)
    found = fault_replay.find(record, training.counts)
    what = str(found) if found else "finite when run again"
  if faults is not None and jax.process_index() == 0:
    saved = {"state": before, "rollout": rollout}
    try:
      faults.remove_after(-1)  # Of a former fault.
      faults.save(error.update, saved, {"seed": error.seed, "fault": what})
    except checkpointing.CheckpointError as problem:
      what += f"; {problem}"
  return finiteness.NonFiniteError(
    error.update, error.seed, error.position, what
  )


def _take_seed(tree: Any, position: int) -> Any:
  """One seed's part of a pytree [seeds, ...] on the host."""
  return jax.tree.map(lambda leaf: leaf[position], tree)
