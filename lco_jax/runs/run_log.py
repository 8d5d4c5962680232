"""Log of a run in training: its metrics, and its progress bar."""

import contextlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from lco_jax.runs import metric_writers, starts
from lco_jax.training import finiteness, phases, program, transfers


class RunLog:
  """Hands the metrics of chunk after chunk to writers and progress bar."""

  def __init__(
    self,
    training: program.Training,
    start: starts.Start,
    num_updates: int,
    writers: Sequence[metric_writers.MetricWriter],
    show_progress: bool,
    past_faults: bool,
  ):
    """Opens the bar; arguments are those of `runner.run`."""
    self._training, self._writers = training, writers
    self._seeds, self._done, self._gone = start.seeds, start.update, None
    self._timings: dict[str, list[float]] = {}
    if past_faults:  # Learners may have stayed behind, at a faulty update.
      self._gone = transfers.to_host(start.state.update) < start.update
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
    # Before metrics of learners that have stopped are left out.
    for name in metrics.keys() & set(phases.METRICS):
      self._timings.setdefault(name, []).extend(metrics[name][:, 0].tolist())
    if self._gone is None:
      bad = finiteness.first_nonfinite(metrics, counts)
    else:
      metrics, self._gone = finiteness.without_faults(
        metrics, self._gone, counts
      )
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
