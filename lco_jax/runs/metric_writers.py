"""Metric writers: CSV, TensorBoard and, optionally, Weights & Biases."""

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

from lco_jax.training import phases

# Metrics that differ between runs with the same configuration.
TIMINGS = ("steps_per_second", *phases.METRICS)
# Maximal delay before TensorBoard sees new metrics.
_FLUSH_SECONDS = 10.0


class MetricWriter(Protocol):
  """Writes the metrics of chunks of updates."""

  def write(
    self,
    updates: Sequence[int],
    steps: Sequence[int],
    metrics: Mapping[str, np.ndarray],
  ) -> None:
    """Writes metrics {name: float[updates, seeds]}.

    Args:
      updates: numbers of the updates, from 1.
      steps: environment steps per seed after each of these updates.
      metrics: arrays by name; NaN if there is no value.
    """
    ...

  def close(self) -> None:
    """Flushes and closes the files."""
    ...


class CsvWriter:
  """Writes a row per update and seed, with empty cells for missing values.

  The file omits timings, so it depends only on the run's configuration.
  """

  def __init__(
    self,
    path: pathlib.Path,
    seeds: Sequence[int],
    resume_after: int | None = None,
  ):
    """Opens the file.

    Args:
      path: the file; must not exist unless the run is resumed.
      seeds: seeds of the run.
      resume_after: number of an update; later rows are removed. None for a new
        run.

    Raises:
      ValueError: if the file ends before that update.
    """
    self._seeds = seeds
    self._names: list[str] = []
    mode = "x" if resume_after is None else "r+" if resume_after else "w"
    # The file stays open until close().
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
    self._file.seek(self._file.tell())  # Discards the read-ahead buffer.
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
  """Writes a TensorBoard run per seed, with one event per update.

  Writes records synchronously: tensorboardX's own writer passes them to a
  thread, which costs more than writing and fails silently on a full disk.
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
      # Viewers then discard previously logged events of later steps.
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
  """Writes one Weights & Biases run, with metrics named `name/seed_K`."""

  def __init__(
    self,
    directory: pathlib.Path,
    seeds: Sequence[int],
    project: str,
    config: Mapping,
  ):
    import wandb  # An optional dependency.

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


class Recorder:
  """Keeps metrics in memory, for a run without a directory."""

  def __init__(self):
    self._steps, self._metrics = [], {}

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    self._steps.append(np.asarray(steps, np.float64))
    for name in sorted(metrics.keys() - set(TIMINGS)):
      values = np.asarray(metrics[name], np.float64)
      self._metrics.setdefault(name, []).append(values)

  def close(self):
    """See MetricWriter."""

  def read(
    self, learners: slice, names: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """Returns what was written, as `run_directory.read_metrics` does.

    Args:
      learners: whose metrics.
      names: metrics; None for all.
    """
    names = list(self._metrics) if names is None else names
    found = {
      name: np.concatenate(self._metrics[name])[:, learners] for name in names
    }
    return {"env_steps": np.concatenate(self._steps)} | found


class PartWriter:
  """Passes the metrics of some learners to another writer."""

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
    seeds: seeds of the run.
    settings: settings of the run; `wandb_project` enables Weights & Biases.
    resume_after: last update that a resumed run keeps; None for a new run.
    steps_per_update: environment steps per seed and update.

  Raises:
    ValueError: if the existing metrics end before that update.
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
  """Checks that Weights & Biases is installed if a project is set.

  Raises:
    ValueError: if a project is set and the package is not installed.
  """
  if project and importlib.util.find_spec("wandb") is None:
    raise ValueError(
      "wandb_project: the package wandb is not installed;"
      " pip install -e '.[wandb]'"
    )
