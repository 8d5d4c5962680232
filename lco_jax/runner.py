"""Runs a training from the host: chunk by chunk, metrics out, progress on."""

import dataclasses
import sys
import time
from collections.abc import Sequence

import numpy as np
import tqdm

from lco_jax import metric_writer, placement, training, types


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run leaves.

  Attributes:
    params: {part: parameters [seeds, ...]}, on the host.
    total_steps: environment steps of each seed.
    compile_seconds: initialising and compiling.
    train_seconds: from the first update to the last, writing included.
    steps_per_second: environment steps of all seeds in a second of training.
  """

  params: dict[str, types.Params]
  total_steps: int
  compile_seconds: float
  train_seconds: float
  steps_per_second: float


def run(
  task: training.Training,
  seeds: Sequence[int],
  where: placement.Placement,
  num_updates: int,
  writers: Sequence[metric_writer.MetricWriter],
  *,
  updates_per_chunk: int | None = None,
  show_progress: bool = True,
) -> Result:
  """Trains all seeds to the end.

  Args:
    task: what to train.
    seeds: one run each, side by side.
    where: placement of seeds and environments on devices.
    num_updates: updates of each seed.
    writers: take the metrics of each chunk; closed at the end.
    updates_per_chunk: updates in a compiled chunk; None chooses.
    show_progress: whether to draw a progress bar on standard error.

  Raises:
    NonFiniteError: if a metric is not finite, naming the first such update.
      The updates before it are written.
  """
  started = time.perf_counter()
  lengths = training.chunk_lengths(
    num_updates,
    updates_per_chunk or training.default_chunk_length(num_updates),
  )
  state = training.initial_state(task, seeds, where)
  programs = training.compile_chunks(task, where, state, lengths)
  compile_seconds = time.perf_counter() - started

  started = chunk_started = time.perf_counter()
  steps_per_update = task.steps_per_update * len(seeds)
  done = 0
  bar = tqdm.tqdm(
    total=num_updates * task.steps_per_update,
    disable=not show_progress,
    unit=" steps",
    unit_scale=True,
    desc=f"{len(seeds)} seeds",
    # A log file gets a line now and then, a terminal a moving bar.
    mininterval=0.1 if sys.stderr.isatty() else 10.0,
  )
  try:
    for length in lengths:
      state, metrics = training.run_chunk(programs[length], where, state)
      now = time.perf_counter()
      speed = length * steps_per_update / (now - chunk_started)
      bad = training.first_nonfinite(metrics)
      kept = length if bad is None else bad[0]
      updates = np.arange(done + 1, done + kept + 1)
      metrics["steps_per_second"] = np.full((length, len(seeds)), speed)
      for writer in writers:
        writer.write(
          updates,
          updates * task.steps_per_update,
          {name: values[:kept] for name, values in metrics.items()},
        )
      if bad is not None:
        raise training.NonFiniteError(
          f"update {done + kept + 1}, seed {seeds[bad[1]]}: not finite:"
          f" {', '.join(bad[2])}"
        )
      done += length
      bar.set_postfix_str(_recent_return(metrics), refresh=False)
      bar.update(length * task.steps_per_update)
      chunk_started = time.perf_counter()
  finally:
    bar.close()
    for writer in writers:
      writer.close()
  train_seconds = time.perf_counter() - started
  return Result(
    params=training.host_params(where, state),
    total_steps=num_updates * task.steps_per_update,
    compile_seconds=compile_seconds,
    train_seconds=train_seconds,
    steps_per_second=num_updates * steps_per_update / train_seconds,
  )


def _recent_return(metrics: dict[str, np.ndarray]) -> str:
  """Mean return of the episodes that ended in a chunk, over all seeds."""
  episodes = metrics["episodes"]
  if not episodes.any():
    return "no episode ended"
  totals = np.nan_to_num(metrics["episode_return_mean"]) * episodes
  return f"return {totals.sum() / episodes.sum():.4g}"
