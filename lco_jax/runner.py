"""Runs a training from the host: chunk by chunk, metrics out, progress on."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from lco_jax import checkpointing, metric_writer, placement, training, types


class StoppedError(Exception):
  """The run was asked to stop, and its state is saved."""


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a resumed run goes on.

  Attributes:
    update: completed updates.
    state: as of `training.host_state`.
    seconds: of training that it took to get there.
  """

  update: int
  state: types.LearnerState
  seconds: float


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


def find_start(
  checkpoints: checkpointing.Checkpoints,
  task: training.Training,
  seeds: Sequence[int],
  where: placement.Placement,
  update: int | None = None,
) -> Start | None:
  """Reads the state that a run goes on from.

  Args:
    checkpoints: of the run.
    task: what it trains.
    seeds: of the run.
    where: any placement: a state can be resumed on other devices.
    update: of the checkpoint to take; None for the newest.

  Returns:
    The start, or None if the run ended before its first checkpoint.

  Raises:
    CheckpointError: if the checkpoint cannot be used.
  """
  if update is None and not checkpoints.steps():
    return None
  like = training.host_state(where, training.initial_state(task, seeds, where))
  update, state, notes = checkpoints.restore(like, update)
  return Start(update, state, notes["train_seconds"])


def run(
  task: training.Training,
  seeds: Sequence[int],
  where: placement.Placement,
  num_updates: int,
  writers: Sequence[metric_writer.MetricWriter],
  *,
  checkpoints: checkpointing.Checkpoints | None = None,
  checkpoint_seconds: float = 30.0,
  start: Start | None = None,
  should_stop: Callable[[], bool] = lambda: False,
  updates_per_chunk: int | None = None,
  show_progress: bool = True,
) -> Result:
  """Trains all seeds to the end.

  While devices compute a chunk, the host writes the metrics of the one before.

  Args:
    task: what to train.
    seeds: one run each, side by side.
    where: placement of seeds and environments on devices.
    num_updates: updates of each seed.
    writers: take the metrics of each chunk; closed at the end.
    checkpoints: where states are saved; None for nowhere.
    checkpoint_seconds: from one save to the next, at least.
    start: where to go on; None for the beginning.
    should_stop: asked between chunks; if so, the state is saved at once.
    updates_per_chunk: updates in a compiled chunk; None chooses.
    show_progress: whether to draw a progress bar on standard error.

  Raises:
    NonFiniteError: if a metric is not finite, naming the first such update.
      The updates before it are written.
    CheckpointError: if a checkpoint cannot be written.
    StoppedError: if asked to.
  """
  started = time.perf_counter()
  done = start.update if start else 0
  lengths = training.chunk_lengths(
    num_updates - done,
    updates_per_chunk or training.default_chunk_length(num_updates),
  )
  log = _Log(task, seeds, num_updates, done, writers, show_progress)
  try:
    state = training.initial_state(task, seeds, where)
    if start:
      state = training.placed_state(where, start.state, state)
    programs = training.compile_chunks(task, where, state, lengths)
    compile_seconds = time.perf_counter() - started

    earlier = start.seconds if start else 0.0
    started = saved = log.last_time = time.perf_counter()

    def save():
      if checkpoints is not None:
        seconds = earlier + time.perf_counter() - started
        host = training.host_state(where, state)
        checkpoints.save(done, host, {"train_seconds": seconds})

    waiting = None  # A chunk whose metrics are not written yet.
    for length in lengths:
      stop = should_stop()
      if stop or time.perf_counter() - saved >= checkpoint_seconds:
        if waiting is not None:
          log.write(training.host_metrics(where, waiting))
          waiting = None
        save()
        saved = time.perf_counter()
      if stop:
        raise StoppedError(f"stopped after update {done} of {num_updates}")
      state, metrics = programs[length](state)
      if waiting is not None:
        log.write(training.host_metrics(where, waiting))
      waiting = metrics
      done += length
    if waiting is not None:
      log.write(training.host_metrics(where, waiting))
      save()
    train_seconds = earlier + time.perf_counter() - started
  finally:
    log.close()
  total_steps = num_updates * task.steps_per_update
  return Result(
    params=training.host_params(where, state),
    total_steps=total_steps,
    compile_seconds=compile_seconds,
    train_seconds=train_seconds,
    steps_per_second=total_steps * len(seeds) / train_seconds,
  )


class _Log:
  """Hands the metrics of chunk after chunk to writers and progress bar."""

  def __init__(
    self,
    task: training.Training,
    seeds: Sequence[int],
    num_updates: int,
    done: int,
    writers: Sequence[metric_writer.MetricWriter],
    show_progress: bool,
  ):
    self._seeds = seeds
    self._steps_per_update = task.steps_per_update
    self._done = done
    self._writers = writers
    self._bar = tqdm.tqdm(
      total=num_updates * task.steps_per_update,
      initial=done * task.steps_per_update,
      disable=not show_progress,
      unit=" steps",
      unit_scale=True,
      desc=f"{len(seeds)} seeds",
      # A log file gets a line now and then, a terminal a moving bar.
      mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    self.last_time = time.perf_counter()

  def write(self, metrics: dict[str, np.ndarray]) -> None:
    """Writes the next chunk's metrics {name: float[updates, seeds]}.

    Raises:
      NonFiniteError: after writing the updates before the first such one.
    """
    length = len(metrics["episodes"])
    now = time.perf_counter()
    steps = length * self._steps_per_update * len(self._seeds)
    metrics["steps_per_second"] = np.full(
      (length, len(self._seeds)), steps / (now - self.last_time)
    )
    self.last_time = now
    bad = training.first_nonfinite(metrics)
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
      raise training.NonFiniteError(
        f"update {self._done + kept + 1}, seed {self._seeds[bad[1]]}:"
        f" not finite: {', '.join(bad[2])}"
      )
    self._done += length
    self._bar.set_postfix_str(_recent_return(metrics), refresh=False)
    self._bar.update(length * self._steps_per_update)

  def close(self) -> None:
    """Ends the bar and completes the writers' files."""
    self._bar.close()
    for writer in self._writers:
      writer.close()


def _recent_return(metrics: dict[str, np.ndarray]) -> str:
  """Mean return of the episodes that ended in a chunk, over all seeds."""
  episodes = metrics["episodes"]
  if not episodes.any():
    return "no episode ended"
  totals = np.nan_to_num(metrics["episode_return_mean"]) * episodes
  return f"return {totals.sum() / episodes.sum():.4g}"
