"""Runs a training from the host: chunk by chunk, metrics out, progress on."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from lco_jax import types
from lco_jax.runs import checkpointing, fault_replay, metric_writers
from lco_jax.training import (
  finiteness,
  host_loop,
  phases,
  placement,
  program,
)


class StoppedError(Exception):
  """The run was asked to stop, and its state is saved."""


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
        state = placement.to_host(state)
      if divided or jax.process_index() == 0:
        notes = {"train_seconds": self.train_seconds}
        self._checkpoints.save(update, state, notes, together=divided)
    self._saved = time.perf_counter()


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
  state, seconds, done = placement.to_host(start.state), 0.0, 0
  # Only the first process need see the checkpoints.
  if jax.process_index() == 0 and (update is not None or checkpoints.steps()):
    done, state, notes = checkpoints.restore(state, update)
    checkpoints.remove_after(done)  # They belong to a course that ends here.
    seconds = notes["train_seconds"]
  # Not that of the state: a learner may have stayed behind, see `run`.
  done, state = placement.from_first_process((np.asarray(done), state))
  return dataclasses.replace(
    start,
    update=int(done),
    state=placement.to_devices(
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
  if not placement.all_agree(steps):
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
    placement.describe(state, mesh, specs), update, together=True
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


def run(
  training: program.Training,
  start: Start,
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
    start: from `begin` or `resume`.
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
  log = _Log(training, start, num_updates, writers, show_progress, past_faults)
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
    params = placement.to_host(params)
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
  state = _take_seed(placement.to_host(state), 0)
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
  start: Start,
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
  start: Start,
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
    stop, due = placement.any_process(should_stop(), saver.is_due)
    if (stop or due or has_checkup(done)) and waiting is not None:
      yield _Chunk(placement.to_host(waiting), state)
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
      yield _Chunk(placement.to_host(waiting), state)
    waiting = metrics
    if faulty:  # The host collected, so that the chunk has ended already.
      yield _Chunk(metrics, state, *faulty)
      waiting = None
    done += length
  if waiting is not None:
    yield _Chunk(placement.to_host(waiting), state)
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
  before = _take_seed(placement.to_host(latest.state), error.position)
  if latest.faulty is None:
    rollout = fault_replay.collect(training, before)
  else:
    rollout = _take_seed(placement.to_host(latest.faulty), error.position)
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


class _Log:
  """Hands the metrics of chunk after chunk to writers and progress bar."""

  def __init__(
    self,
    training: program.Training,
    start: Start,
    num_updates: int,
    writers: Sequence[metric_writers.MetricWriter],
    show_progress: bool,
    past_faults: bool,
  ):
    self._training, self._writers = training, writers
    self._seeds, self._done, self._gone = start.seeds, start.update, None
    self._timings: dict[str, list[float]] = {}
    if past_faults:  # Learners may have stayed behind, at a faulty update.
      self._gone = placement.to_host(start.state.update) < start.update
    steps_per_update = training.steps_per_update
    self._bar = tqdm.tqdm(
      total=num_updates * steps_per_update,
      initial=start.update * steps_per_update,
      disable=not show_progress or jax.process_index() > 0,
      unit=" steps",
      unit_scale=True,
      desc=f"{len(start.seeds)} learners",
      # A log file gets a line now and then, a terminal a moving bar.
      mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    self.start_clock()

  def start_clock(self) -> None:
    """Starts the clock that the first chunk's speed is measured by."""
    self._last_time = time.perf_counter()

  def write(self, metrics: dict[str, np.ndarray]) -> None:
    """Writes the next chunk's metrics {name: float[updates, seeds]}.

    Raises:
      NonFiniteError: after writing the updates before the first such one.
    """
    headline, counts = self._training.headline, self._training.counts
    steps_per_update = self._training.steps_per_update
    length = len(metrics[headline])
    now = time.perf_counter()
    steps = length * steps_per_update * len(self._seeds)
    speed = steps / (now - self._last_time)
    metrics = metrics | {
      "steps_per_second": np.full((length, len(self._seeds)), speed)
    }
    self._last_time, bad = now, None
    if self._gone is None:
      bad = finiteness.first_nonfinite(metrics, counts)
    else:
      metrics, self._gone = finiteness.without_faults(
        metrics, self._gone, counts
      )
    for name in metrics.keys() & set(phases.METRICS):
      self._timings.setdefault(name, []).extend(metrics[name][:, 0].tolist())
    kept = length if bad is None else bad[0]
    updates = np.arange(self._done + 1, self._done + kept + 1)
    if kept:
      for writer in self._writers:
        writer.write(
          updates,
          updates * steps_per_update,
          {name: values[:kept] for name, values in metrics.items()},
        )
    if bad is not None:
      _, position, names = bad
      raise finiteness.NonFiniteError(
        self._done + kept + 1,
        self._seeds[position],
        position,
        f"not finite: {', '.join(names)}",
      )
    self._done += length
    shown = metrics[headline]
    shown = f"{np.nanmean(shown):.4g}" if np.isfinite(shown).any() else "none"
    shown = f"{headline} {shown}"
    tokens = metrics.get(f"{phases.GENERATION}_tokens_per_second")
    if tokens is not None:
      shown += f", {tokens[-1, 0]:.3g} tokens/s per device"
    self._bar.set_postfix_str(shown, refresh=False)
    self._bar.update(length * steps_per_update)

  def summarize_timings(self) -> dict[str, float]:
    """Medians of what is measured of the updates' phases."""
    return {
      name: float(np.median(own)) for name, own in sorted(self._timings.items())
    }

  def close(self) -> None:
    """Ends the bar and completes the writers' files."""
    with contextlib.ExitStack() as stack:  # Closes all, whichever fails.
      stack.callback(self._bar.close)
      for writer in self._writers:
        stack.callback(writer.close)
