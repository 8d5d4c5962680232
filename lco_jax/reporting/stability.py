"""Stability of training over learning rates and another setting.

An algorithm's map has a cell for each value of the other setting (rows) and
each learning rate; a cell has several seeds. Its arrays are
[rows, rates, seeds].
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from lco_jax.control import training
from lco_jax.language import prompt_repeats
from lco_jax.reporting import curves, statistics
from lco_jax.runs import run_directory

# Of all kinds of runs: {metric that may be NaN: metric that counts its values}.
COUNTS = training.COUNTS | prompt_repeats.COUNTS

# A run has collapsed if it lost this share of its best gain, provided that its
# best gain was at least this share of the best gain of all runs.
_LOST = 0.5
_MATERIAL = 0.1
# A cell is good if its gain is below the best gain by at most this share.
_NEAR_BEST = 0.05


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of runs, with any leading axes and the seeds last.

  Attributes:
    final: float[..., seeds], mean score over the last tenth of training.
    area: float[..., seeds], mean score over training.
    best: float[..., seeds], highest mean score over a tenth of training.
    faulted: bool[..., seeds], whether an update was not finite.
    max_kl: float[..., seeds], largest KL(π_old ‖ π_new) of an update, nats.
    entropy: float[..., seeds], mean over the last tenth's rollouts, nats.
    max_gradient_norm: float[..., seeds], largest of all updates, unclipped.
  """

  final: np.ndarray
  area: np.ndarray
  best: np.ndarray
  faulted: np.ndarray
  max_kl: np.ndarray
  entropy: np.ndarray
  max_gradient_norm: np.ndarray


def read_scores(workdir: pathlib.Path, floor: float) -> Scores:
  """Reads the scores of a run's seeds from its metrics.csv.

  Args:
    workdir: directory of a control or language run at one learning rate.
    floor: score of an untrained policy; replaces the score before a seed's
      first one and after a non-finite update.

  Returns:
    Scores [seeds].
  """
  score = find_score(workdir)
  names = ["kl_old_new", "entropy", "policy_gradient_norm"]
  count = COUNTS.get(score)
  if count:
    names.append(count)
  logged = run_directory.read_metrics(workdir, [score, *names])
  # The cells of a non-finite update and all later updates are empty.
  faulted = np.isnan(logged["kl_old_new"])
  counts = logged.get(count, np.ones_like(logged[score]))
  _, windows = curves.bin_returns(
    logged["env_steps"],
    logged[score],
    np.where(faulted, 0.0, counts),
    num_windows=10,
  )
  updates = np.array_split(np.arange(len(faulted)), len(windows))
  gone = np.array([faulted[window].any(axis=0) for window in updates])
  windows[-1] = curves.compute_final_scores(logged[score], counts)
  windows = np.where(np.isnan(windows) | gone, floor, windows)
  return Scores(
    final=windows[-1],
    area=windows.mean(axis=0),
    best=windows.max(axis=0),
    faulted=faulted.any(axis=0),
    max_kl=np.fmax.reduce(logged["kl_old_new"]),
    entropy=curves.last_tenth(logged["entropy"]).mean(axis=0),
    max_gradient_norm=np.fmax.reduce(logged["policy_gradient_norm"]),
  )


def estimate_floor(workdirs: Sequence[pathlib.Path]) -> float:
  """Estimates an untrained policy's score: the lowest mean of a first tenth.

  Args:
    workdirs: directories of runs on the same problem.

  Raises:
    ValueError: if no run has a score in its first tenth.
  """
  found = []
  for workdir in workdirs:
    score = find_score(workdir)
    values = run_directory.read_metrics(workdir, [score])[score]
    first = curves.first_tenth(values)
    if not np.isnan(first).all():
      found.append(float(np.nanmean(first)))
  if not found:
    raise ValueError(
      f"{workdirs[0]} and others: no episode ended in a tenth of training"
    )
  return min(found)


def find_score(workdir: pathlib.Path) -> str:
  """Finds the metric that scores a run: return or share of right answers.

  Raises:
    ValueError: if the run has neither.
  """
  with open(workdir / "metrics.csv") as file:
    names = file.readline().strip().split(",")
  for name in ("episode_return_mean", "first_visit_correct", "correct"):
    if name in names:
      return name
  raise ValueError(f"{workdir}: metrics.csv has no score")


def stack_scores(scores: list) -> Scores:
  """Stacks (nested) lists of Scores along new leading axes."""
  if isinstance(scores, Scores):
    return scores
  inner = [stack_scores(item) for item in scores]
  return Scores(
    **{
      field.name: np.stack([getattr(item, field.name) for item in inner])
      for field in dataclasses.fields(Scores)
    }
  )


def detect_collapse(
  scores: Scores,
  floor: float,
  ceiling: float,
  min_entropy: float = 0.0,
  max_gradient_norm: float = np.inf,
) -> np.ndarray:
  """Detects runs that lost their gains or left the given bounds.

  A run has collapsed if
  * an update was not finite;
  * it lost half of its best gain, which was at least a tenth of the ceiling's;
  * its entropy fell below the bound and its gain below half of the ceiling's;
  * or a gradient was too large.

  Args:
    scores: scores of runs.
    floor: score of an untrained policy.
    ceiling: best score of all runs.
    min_entropy: bound on the entropy, nats; 0 for no bound.
    max_gradient_norm: bound before clipping; infinite for no bound.

  Returns:
    bool[..., seeds].
  """
  gain, final, most = (
    score - floor for score in (scores.best, scores.final, ceiling)
  )
  return (
    scores.faulted
    | ((final < (1 - _LOST) * gain) & (gain >= _MATERIAL * most))
    | ((final < (1 - _LOST) * most) & (scores.entropy < min_entropy))
    | (scores.max_gradient_norm > max_gradient_norm)
  )


def robustness_area(
  final: np.ndarray, floor: float, ceiling: float
) -> np.ndarray:
  """Share of a map's cells whose IQM is within 5% of the best gain.

  Args:
    final: float[..., rows, rates, seeds].
    floor: score of an untrained policy.
    ceiling: best score of all cells of all algorithms.

  Returns:
    float[...], in [0, 1].
  """
  good = ceiling - _NEAR_BEST * (ceiling - floor)
  near = statistics.interquartile_mean(final) >= good
  near = near & (ceiling > floor)  # No cell is good if nothing was learned.
  return near.mean(axis=(-2, -1))


def robustness_interval(
  final: np.ndarray, floor: float, ceiling: float
) -> tuple[float, float]:
  """95% bootstrap interval of one algorithm's robustness area, over seeds.

  Resamples the seeds of every cell; the cells stay fixed.

  Args:
    final: float[rows, rates, seeds].
    floor: see `robustness_area`.
    ceiling: see `robustness_area`.
  """
  low, high = statistics.stratified_interval(
    lambda drawn: robustness_area(drawn, floor, ceiling), final
  )
  return float(low), float(high)
