"""Writers of metrics: CSV and TensorBoard always, Weights & Biases if asked."""

import csv
import importlib.util
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2, summary_pb2

# Metrics that differ from run to run.
TIMINGS = ("steps_per_second",)
# How long TensorBoard may wait for what is written.
_FLUSH_SECONDS = 10.0


class MetricWriter(Protocol):
  """Takes the metrics of a chunk of updates of all seeds."""

  def write(
    self,
    updates: Sequence[int],
    steps: Sequence[int],
    metrics: Mapping[str, np.ndarray],
  ) -> None:
    """Writes metrics {name: float[updates, seeds]}.

    Args:
      updates: numbers of the updates, from 1.
      steps: environment steps of each seed after these updates.
      metrics: by name; NaN where there is no value.
    """
    ...

  def close(self) -> None:
    """Completes the files."""
    ...


class CsvWriter:
  """A row for each update and seed; an empty cell is no value.

  The file depends on nothing but the run's configuration: timings are left out.
  """

  def __init__(
    self,
    path: pathlib.Path,
    seeds: Sequence[int],
    resume_after: int | None = None,
  ):
    """Opens the file.

    Args:
      path: the file; new, unless resuming.
      seeds: of the run.
      resume_after: an update; what was written of later ones is cut off.
        None for a new run.

    Raises:
      ValueError: if the file ends before that update.
    """
    self._seeds = seeds
    self._names: list[str] = []
    mode = "x" if resume_after is None else "r+" if resume_after else "w"
    # Held open for the whole run; close() ends it.
    self._file = open(path, mode, newline="")  # noqa: SIM115
    self._writer = csv.writer(self._file)
    if not resume_after:
      return
    self._names = self._file.readline().rstrip("\r\n").split(",")[3:]
    line = ""
    for _ in range(resume_after * len(seeds)):
      line = self._file.readline()
    if not (line.startswith(f"{resume_after},") and line.endswith("\n")):
      self._file.close()
      raise ValueError(f"{path} ends before update {resume_after}")
    self._file.seek(self._file.tell())  # Past what was read ahead, also.
    self._file.truncate()

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    if not self._names:
      self._names = sorted(set(metrics) - set(TIMINGS))
      self._writer.writerow(["update", "env_steps", "seed", *self._names])
    table = np.stack([metrics[name] for name in self._names], axis=-1)
    for update, step, row in zip(updates, steps, table, strict=True):
      for seed, values in zip(self._seeds, row, strict=True):
        cells = ["" if np.isnan(v) else f"{v:.7g}" for v in values]
        self._writer.writerow([update, step, seed, *cells])
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self):
    """See MetricWriter."""
    self._file.close()


class TensorBoardWriter:
  """A run for each seed, all metrics of an update in one event.

  Records are written here and now: tensorboardX's own writer hands them to a
  thread, which costs more than writing them, and dies of a full disk unheard.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    seeds: Sequence[int],
    resume_after_step: int | None = None,
  ):
    name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
    self._files = []
    for seed in seeds:
      folder = directory / f"seed_{seed}"
      folder.mkdir(parents=True, exist_ok=True)
      self._files.append(record_writer.RecordWriter(str(folder / name)))
    self._flushed = time.monotonic()
    self._write_everywhere(event_pb2.Event(file_version="brain.Event:2"))
    if resume_after_step is not None:
      # A viewer forgets what was logged of later steps before.
      started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write_everywhere(
        event_pb2.Event(step=resume_after_step + 1, session_log=started)
      )

  def _write_everywhere(self, event):
    event.wall_time = time.time()
    for file in self._files:
      file.write(event.SerializeToString())

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    now = time.time()
    for index, step in enumerate(steps):
      for position, file in enumerate(self._files):
        values = [
          summary_pb2.Summary.Value(tag=name, simple_value=value)
          for name, value in (
            (name, values[index, position]) for name, values in metrics.items()
          )
          if not np.isnan(value)
        ]
        event = event_pb2.Event(
          wall_time=now, step=int(step), summary={"value": values}
        )
        file.write(event.SerializeToString())
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      for file in self._files:
        file.flush()
      self._flushed = time.monotonic()

  def close(self):
    """See MetricWriter."""
    for file in self._files:
      file.close()


class WandbWriter:
  """Weights & Biases; one run, a metric of a seed is `name/seed_K`."""

  def __init__(
    self,
    directory: pathlib.Path,
    seeds: Sequence[int],
    project: str,
    config: Mapping,
  ):
    import wandb  # An extra: imported only where it is asked for.

    self._run = wandb.init(project=project, dir=str(directory), config=config)
    self._seeds = seeds

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    for index, step in enumerate(steps):
      values = {
        f"{name}/seed_{seed}": float(value[index, position])
        for name, value in metrics.items()
        for position, seed in enumerate(self._seeds)
        if not np.isnan(value[index, position])
      }
      self._run.log(values, step=step)

  def close(self):
    """See MetricWriter."""
    self._run.finish()


class PartWriter:
  """Hands the metrics of some learners to a writer of their own."""

  def __init__(self, writer: MetricWriter, learners: slice):
    self._writer, self._learners = writer, learners

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    own = {name: values[:, self._learners] for name, values in metrics.items()}
    self._writer.write(updates, steps, own)

  def close(self):
    """See MetricWriter."""
    self._writer.close()


def make_writers(
  directory: pathlib.Path,
  seeds: Sequence[int],
  settings: Mapping,
  resume_after: int | None = None,
  steps_per_update: int = 1,
) -> list[MetricWriter]:
  """Opens the writers of a run.

  Args:
    directory: the run directory.
    seeds: of the run.
    settings: of the run; `wandb_project` turns Weights & Biases on.
    resume_after: the update that a resumed run goes on after; None for a new
      run.
    steps_per_update: environment steps of each seed.

  Raises:
    ValueError: if what is resumed does not reach that update.
  """
  writers = [
    CsvWriter(directory / "metrics.csv", seeds, resume_after),
    TensorBoardWriter(
      directory / "tensorboard",
      seeds,
      None if resume_after is None else resume_after * steps_per_update,
    ),
  ]
  project = settings["wandb_project"]
  if project:
    writers.append(WandbWriter(directory, seeds, project, settings))
  return writers


def check_wandb(project: str | None) -> None:
  """Checks that Weights & Biases is there if it is asked for.

  Raises:
    ValueError: if a project is named and the package is not installed.
  """
  if project and importlib.util.find_spec("wandb") is None:
    raise ValueError(
      "wandb_project: the package wandb is not installed;"
      " pip install -e '.[wandb]'"
    )
