"""Runs as their directories have them; seeds of several directories joined."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lco_jax.reporting import conditions, curves, stability
from lco_jax.runs import run_directory

_WINDOWS = 60
# Settings that change nothing of what is learned, but for what a seed draws.
NOT_TRAINED = (
  "seed",
  "num_seeds",
  "updates_per_chunk",
  "checkpoint_seconds",
  "keep_checkpoints",
  "wandb_project",
  "export",
  "scoring_workers",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """Seeds that were trained alike.

  Attributes:
    paths: the run directories that hold them.
    settings: config.json of the first.
    seeds: numbers of the seeds, none twice.
    score: name of the metric that it is judged by.
    steps: float[windows], environment steps, or samples, of each seed.
    metrics: {name: float[windows, seeds]}, means of windows; NaN where a seed
      has no value.
    final: float[seeds], from `curves.compute_final_scores`; NaN where a seed
      stopped, or was never scored.
    stopped: bool[seeds], whether an update was not finite and ended the seed.
    evaluated: {"greedy" or "sampled": float[seeds]}, scores of the policies
      that were learned: episodic returns, or accuracies on test problems; empty
      where a run was not evaluated.
  """

  paths: tuple[pathlib.Path, ...]
  settings: Mapping
  seeds: tuple[int, ...]
  score: str
  steps: np.ndarray
  metrics: Mapping[str, np.ndarray]
  final: np.ndarray
  stopped: np.ndarray
  evaluated: Mapping[str, np.ndarray]

  @property
  def problem(self) -> str:
    """The environment or task."""
    return self.settings.get("environment") or self.settings["task"]

  @property
  def conditions(self) -> dict[str, object]:
    """The conditions under which it learned and was judged."""
    return conditions.find_conditions(self.settings, int(self.steps[-1]))

  @property
  def algorithm(self) -> str:
    """The algorithm that trained it."""
    return self.settings["algorithm"]


def find(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """The run directories at or below some paths; not their warm starts.

  Raises:
    ValueError: naming a path without any.
  """
  found = []
  for path in paths:
    own = sorted(
      file.parent
      for file in path.rglob("metrics.csv")
      if file.parent == path or file.parent.name != "warm_start"
    )
    if not own:
      raise ValueError(f"{path} holds no run: no metrics.csv")
    found += [directory for directory in own if directory not in found]
  return found


def load(path: pathlib.Path) -> Run | None:
  """Reads a run; None if it has no update yet.

  Raises:
    ValueError: if its files are missing or damaged.
  """
  settings = run_directory.read_config(path)
  if "algorithm" not in settings:
    raise ValueError(f"{path}: config.json names no algorithm")
  with open(path / "metrics.csv") as file:
    names = file.readline().strip().split(",")[3:]
    if not file.readline():
      return None
  score = stability.find_score(path)
  logged = run_directory.read_metrics(path, names)
  steps = logged.pop("env_steps")
  gone = np.isnan(logged["policy_loss"])
  always = np.ones_like(logged[score])
  metrics = {}
  for name, values in logged.items():
    counted = logged.get(stability.COUNTS.get(name), always)
    at, metrics[name] = curves.bin_returns(
      steps, values, np.where(np.isnan(values), 0.0, counted), _WINDOWS, gone
    )
  counted = logged.get(stability.COUNTS.get(score), always)
  final = curves.compute_final_scores(logged[score], counted)
  return Run(
    paths=(path,),
    settings=settings,
    seeds=tuple(settings["seed"] + i for i in range(len(final))),
    score=score,
    steps=at,
    metrics=metrics,
    final=np.where(gone[-1], np.nan, final),
    stopped=gone[-1],
    evaluated=_evaluated(path),
  )


def _evaluated(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads each seed's evaluation scores from summary.json; {} without any."""
  try:
    summary = json.loads((path / "summary.json").read_text())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise ValueError(f"{path}/summary.json is damaged: {error}") from error
  evaluation = summary.get("evaluation", {})
  if "evaluation_sampled" in summary:  # Control.
    found = {"greedy": evaluation, "sampled": summary["evaluation_sampled"]}
  elif "pass_at_k" in evaluation:  # Language tasks.
    found = {"greedy": evaluation, "sampled": evaluation["pass_at_k"]["1"]}
  else:  # Pretrained models; verifiers have none.
    found = evaluation
  return {
    name: np.array(found[name]["per_seed"], float)
    for name in ("greedy", "sampled")
    if name in found
  }


def joined(runs: Sequence[Run]) -> list[Run]:
  """Runs whose settings differ in seeds alone, as one run of all their seeds.

  One whose seed is there already, of another length, or with other metrics
  stays a run of its own.

  Args:
    runs: from `load`.
  """
  groups: list[list[Run]] = []
  for run in runs:
    for group in groups:
      if all(_belong_together(run, other) for other in group):
        group.append(run)
        break
    else:
      groups.append([run])
  return [_join(group) for group in groups]


def _belong_together(run: Run, other: Run) -> bool:
  return (
    _trained(run) == _trained(other)
    and not set(run.seeds) & set(other.seeds)
    and np.array_equal(run.steps, other.steps)
    and run.metrics.keys() == other.metrics.keys()
    and run.evaluated.keys() == other.evaluated.keys()
  )


def _trained(run: Run) -> dict:
  """The settings that what is learned depends on."""
  return {k: v for k, v in run.settings.items() if k not in NOT_TRAINED}


def _join(runs: Sequence[Run]) -> Run:
  """One run of the seeds of several, by their numbers."""
  first = runs[0]
  seeds = np.concatenate([run.seeds for run in runs])
  order = np.argsort(seeds)

  def join(parts):
    return np.concatenate(list(parts), axis=-1)[..., order]

  return Run(
    paths=tuple(path for run in runs for path in run.paths),
    settings=first.settings,
    seeds=tuple(seeds[order].tolist()),
    score=first.score,
    steps=first.steps,
    metrics={
      name: join(run.metrics[name] for run in runs) for name in first.metrics
    },
    final=join(run.final for run in runs),
    stopped=join(run.stopped for run in runs),
    evaluated={
      name: join(run.evaluated[name] for run in runs)
      for name in first.evaluated
    },
  )
