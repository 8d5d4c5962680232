"""Writers of metrics: CSV and TensorBoard always, Weights & Biases if asked."""

import csv
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorboardX


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
  """A row for each update and seed; an empty cell is no value."""

  def __init__(self, path: pathlib.Path, seeds: Sequence[int]):
    # Held open for the whole run; close() ends it.
    self._file = open(path, "x", newline="")  # noqa: SIM115
    self._writer = csv.writer(self._file)
    self._seeds = seeds
    self._names: list[str] = []

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    if not self._names:
      self._names = sorted(metrics)
      self._writer.writerow(["update", "env_steps", "seed", *self._names])
    table = np.stack([metrics[name] for name in self._names], axis=-1)
    for update, step, row in zip(updates, steps, table, strict=True):
      for seed, values in zip(self._seeds, row, strict=True):
        cells = ["" if np.isnan(v) else f"{v:.7g}" for v in values]
        self._writer.writerow([update, step, seed, *cells])
    self._file.flush()

  def close(self):
    """See MetricWriter."""
    self._file.close()


class TensorBoardWriter:
  """A run for each seed, all metrics of an update in one event."""

  def __init__(self, directory: pathlib.Path, seeds: Sequence[int]):
    self._writers = [
      # Flushed by its own thread: waiting for that would stall training.
      tensorboardX.SummaryWriter(str(directory / f"seed_{seed}"), flush_secs=10)
      for seed in seeds
    ]

  def write(self, updates, steps, metrics):
    """See MetricWriter."""
    summary = tensorboardX.proto.summary_pb2.Summary
    for index, step in enumerate(steps):
      for position, writer in enumerate(self._writers):
        values = [
          summary.Value(tag=name, simple_value=value[index, position])
          for name, value in metrics.items()
          if not np.isnan(value[index, position])
        ]
        writer.file_writer.add_summary(summary(value=values), step)

  def close(self):
    """See MetricWriter."""
    for writer in self._writers:
      writer.close()


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


def make_writers(
  directory: pathlib.Path, seeds: Sequence[int], settings: Mapping
) -> list[MetricWriter]:
  """Opens the writers of a run.

  Args:
    directory: the run directory.
    seeds: of the run.
    settings: of the run; `wandb_project` turns Weights & Biases on.
  """
  writers = [
    CsvWriter(directory / "metrics.csv", seeds),
    TensorBoardWriter(directory / "tensorboard", seeds),
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
