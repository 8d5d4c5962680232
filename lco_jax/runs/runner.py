"""Runs a training from the host: chunk by chunk, metrics out, progress on."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from lco_jax import types
from lco_jax.runs import checkpointing, fault_replay, metric_writers
from lco_jax.training import (
  finiteness,
  host_loop,
  learner_state,
  placement,
  program,
)


class StoppedError(Exception):
  """The run was asked to stop, and its state is saved."""


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a run begins, or goes on; from `begin` or `resume`.

  Attributes:
    seeds: one run each, side by side; the same one again for another rate.
    where: placement of seeds and environments on devices.
    update: completed updates.
    state: learner state [devices, seeds, ...]; consumed by the run.
    train_seconds: of training that it took to get here.
    setup_seconds: that it took to make the state.
  """

  seeds: Sequence[int]
  where: placement.Placement
  update: int
  state: types.LearnerState
  train_seconds: float
  setup_seconds: float


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run leaves.

  Attributes:
    params: {part: parameters [seeds, ...]}, on the host.
    total_steps: environment steps of each seed.
    compile_seconds: initialising and compiling.
    train_seconds: from the first update to the last, writing included, over
      all processes that worked on it.
    steps_per_second: environment steps of all seeds in a second of training.
  """

  params: dict[str, types.Params]
  total_steps: int
  compile_seconds: float
  train_seconds: float
  steps_per_second: float


def begin(
  task: program.Training,
  seeds: Sequence[int],
  where: placement.Placement,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> Start:
  """The start of a new run.

  Args:
    task: what to train.
    seeds: one run each.
    where: their placement.
    given: {part: parameters [seeds, ...]} to begin with, on the host.
    learning_rates: one for each of the seeds, as of `program.initial_state`.
  """
  started = time.perf_counter()
  state = program.initial_state(task, seeds, where, given, learning_rates)
  state = jax.block_until_ready(state)
  return Start(seeds, where, 0, state, 0.0, time.perf_counter() - started)


def resume(
  task: program.Training,
  seeds: Sequence[int],
  where: placement.Placement,
  checkpoints: checkpointing.Checkpoints,
  update: int | None = None,
  given: Mapping[str, types.Params] | None = None,
  learning_rates: Sequence[float] | None = None,
) -> Start:
  """The start of a run that goes on from a checkpoint.

  Args:
    task: what it trains.
    seeds: of the run.
    where: any placement: a run can go on on other devices.
    checkpoints: of the run.
    update: of the checkpoint to take, newer ones being removed; None for the
      newest, or the beginning if the run ended before its first.
    given: as of `begin`.
    learning_rates: as of `begin`.

  Raises:
    CheckpointError: if the checkpoint cannot be used.
  """
  start = begin(task, seeds, where, given, learning_rates)
  state, seconds, done = learner_state.host_state(where, start.state), 0.0, 0
  # Only the first process need see the checkpoints.
  if jax.process_index() == 0 and (update is not None or checkpoints.steps()):
    done, state, notes = checkpoints.restore(state, update)
    checkpoints.remove_after(done)  # Of a course that is not taken again.
    seconds = notes["train_seconds"]
  # Not that of the state: a learner may have stayed behind, see `run`.
  done, state = placement.from_first_process((np.asarray(done), state))
  return dataclasses.replace(
    start,
    update=int(done),
    state=learner_state.placed_state(where, state),
    train_seconds=seconds,
  )


def run(
  task: program.Training,
  start: Start,
  num_updates: int,
  writers: Sequence[metric_writers.MetricWriter],
  *,
  collector: host_loop.Collector | None = None,
  checkpoints: checkpointing.Checkpoints | None = None,
  checkpoint_seconds: float = 30.0,
  faults: checkpointing.Checkpoints | None = None,
  past_faults: bool = False,
  should_stop: Callable[[], bool] = lambda: False,
  updates_per_chunk: int | None = None,
  profile: pathlib.Path | None = None,
  show_progress: bool = True,
) -> Result:
  """Trains all seeds to the end.

  While devices compute a chunk, the host writes the metrics of the one before.
  Of several processes all run this, and the first alone saves and shows.

  Args:
    task: what to train.
    start: from `begin` or `resume`.
    num_updates: updates of each seed.
    writers: take the metrics of each chunk; closed at the end. Empty in all
      processes but the first.
    collector: what collects, if that is on the host.
    checkpoints: where states are saved; None, in all processes, for nowhere.
    checkpoint_seconds: from one save to the next, at least.
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
  started = time.perf_counter()
  where, state, done = start.where, start.state, start.update
  lengths = program.chunk_lengths(
    num_updates - done,
    updates_per_chunk or program.default_chunk_length(num_updates),
  )
  # Learners that stayed behind, at an update that is not finite.
  gone = where.collect_seeds(state.update) < done if past_faults else None
  log = _Log(task, start.seeds, num_updates, done, writers, show_progress, gone)
  try:
    if collector is None:
      programs = program.compile_chunks(task, where, state, lengths)
    else:
      programs = host_loop.make_programs(collector, task, where, lengths)
    compile_seconds = start.setup_seconds + time.perf_counter() - started

    started = saved = log.last_time = time.perf_counter()

    def save():
      if checkpoints is None:
        return
      host = learner_state.host_state(
        where, state
      )  # Brought there by all processes.
      if jax.process_index() == 0:
        seconds = start.train_seconds + time.perf_counter() - started
        checkpoints.save(done, host, {"train_seconds": seconds})

    waiting = None  # Metrics of a chunk that are not written yet.

    def write_waiting():
      nonlocal waiting
      if waiting is not None:
        log.write(where.common(waiting))
      waiting = None

    for position, length in enumerate(lengths):
      due = time.perf_counter() - saved >= checkpoint_seconds
      stop, due = placement.any_process(should_stop(), due)
      if stop or due:
        write_waiting()
        save()
        saved = time.perf_counter()
      if stop:
        raise StoppedError(f"stopped after update {done} of {num_updates}")
      if profile is not None and position == min(1, len(lengths) - 1):
        with jax.profiler.trace(str(profile)):
          state, metrics = jax.block_until_ready(programs[length](state))
      else:
        state, metrics = programs[length](state)
      write_waiting()
      done += length
      if collector is None:
        waiting = metrics
      else:  # Then the chunk has ended already.
        log.write(metrics)
    write_waiting()
    save()
    train_seconds = start.train_seconds + time.perf_counter() - started
  except finiteness.NonFiniteError as error:
    raise _explained(error, task, where, state, collector, faults) from error
  finally:
    log.close()
  total_steps = num_updates * task.steps_per_update
  return Result(
    params=where.collect_seeds(state.params),
    total_steps=total_steps,
    compile_seconds=compile_seconds,
    train_seconds=train_seconds,
    steps_per_second=total_steps * len(start.seeds) / train_seconds,
  )


def load_fault(
  faults: checkpointing.Checkpoints,
  task: program.Training,
  where: placement.Placement,
  blank_rollout: Any | None = None,
) -> tuple[int, types.LearnerState, Any, str]:
  """Reads what `run` saved of an update that is not finite.

  Args:
    faults: as given to `run`.
    task: what was trained.
    where: any placement of one seed.
    blank_rollout: what a rollout looks like, if the host collected it.

  Returns:
    (seed, state before the update, rollout, what was found); the state as of
    `learner_state.host_state`, of one seed and without the seeds' axis.

  Raises:
    CheckpointError: if there is none, or it cannot be used.
  """
  state = program.initial_state(task, (0,), where)
  state = _of_seed(learner_state.host_state(where, state), 0)
  if blank_rollout is None:
    blank_rollout = fault_replay.collect(task, state)
  like = {"state": state, "rollout": blank_rollout}
  _, saved, notes = faults.restore(like)
  return notes["seed"], saved["state"], saved["rollout"], notes["fault"]


def _explained(
  error: finiteness.NonFiniteError,
  task: program.Training,
  where: placement.Placement,
  state: types.LearnerState,
  collector: host_loop.Collector | None,
  faults: checkpointing.Checkpoints | None,
) -> finiteness.NonFiniteError:
  """Runs the failed update again, to say what of it is not finite first.

  The seed's state is the one before that update, however many steps the program
  went on for; see `program.train_step`.
  """
  before = _of_seed(learner_state.host_state(where, state), error.position)
  if collector is None:
    rollout = fault_replay.collect(task, before)
  else:
    rollout = where.collect_streams(collector.rollout, axis=2)
    rollout = _of_seed(rollout, error.position)
  what = str(error).partition(": ")[2]
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # Too large for one.
    found = fault_replay.find(fault_replay.replay(task, before, rollout))
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


def _of_seed(tree: Any, position: int) -> Any:
  """One seed's part of a pytree [seeds, ...] on the host."""
  return jax.tree.map(lambda leaf: leaf[position], tree)


class _Log:
  """Hands the metrics of chunk after chunk to writers and progress bar."""

  def __init__(
    self,
    task: program.Training,
    seeds: Sequence[int],
    num_updates: int,
    done: int,
    writers: Sequence[metric_writers.MetricWriter],
    show_progress: bool,
    gone: np.ndarray | None,
  ):
    self._seeds = seeds
    self._gone = gone
    self._headline = task.headline
    self._steps_per_update = task.steps_per_update
    self._done = done
    self._writers = writers
    self._bar = tqdm.tqdm(
      total=num_updates * task.steps_per_update,
      initial=done * task.steps_per_update,
      disable=not show_progress or jax.process_index() > 0,
      unit=" steps",
      unit_scale=True,
      desc=f"{len(seeds)} learners",
      # A log file gets a line now and then, a terminal a moving bar.
      mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    self.last_time = time.perf_counter()

  def write(self, metrics: dict[str, np.ndarray]) -> None:
    """Writes the next chunk's metrics {name: float[updates, seeds]}.

    Raises:
      NonFiniteError: after writing the updates before the first such one.
    """
    length = len(metrics[self._headline])
    now = time.perf_counter()
    steps = length * self._steps_per_update * len(self._seeds)
    metrics["steps_per_second"] = np.full(
      (length, len(self._seeds)), steps / (now - self.last_time)
    )
    self.last_time = now
    if self._gone is None:
      bad = finiteness.first_nonfinite(metrics)
    else:
      metrics, self._gone = finiteness.without_faults(metrics, self._gone)
      bad = None
    kept = length if bad is None else bad[0]
    updates = np.arange(self._done + 1, self._done + kept + 1)
    if kept:
      for writer in self._writers:
        writer.write(
          updates,
          updates * self._steps_per_update,
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
    shown = metrics[self._headline]
    shown = f"{np.nanmean(shown):.4g}" if np.isfinite(shown).any() else "none"
    self._bar.set_postfix_str(f"{self._headline} {shown}", refresh=False)
    self._bar.update(length * self._steps_per_update)

  def close(self) -> None:
    """Ends the bar and completes the writers' files."""
    with contextlib.ExitStack() as stack:  # Closes all, whichever fails.
      stack.callback(self._bar.close)
      for writer in self._writers:
        stack.callback(writer.close)
