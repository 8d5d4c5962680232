"""Stability of training over learning rates and other settings.

A map has a cell for each algorithm, value of another setting (rows) and rate;
a cell has several seeds. Arrays of a map: [rows, rates, seeds].
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

# A run has collapsed if it lost so much of what it had gained at its best, if
# that was at least so much of what the best of all runs gained.
_LOST = 0.5
_MATERIAL = 0.1
# Share of the best gain within which a cell counts as good.
_NEAR_BEST = 0.05


@dataclasses.dataclass(frozen=True)
class Scores:
  """What runs came to; arrays of any leading axes and seeds last.

  Attributes:
    final: float[..., seeds], mean score over the last tenth of training.
    area: float[..., seeds], mean score over training.
    best: float[..., seeds], highest mean score over a tenth of training.
    faulted: bool[..., seeds], whether an update was not finite.
    max_kl: float[..., seeds], largest KL(π_old ‖ π_new) of an update, nats.
    entropy: float[..., seeds], of the rollouts in the last tenth, nats.
    max_gradient_norm: float[..., seeds], largest of an update, before clipping.
  """

  final: np.ndarray
  area: np.ndarray
  best: np.ndarray
  faulted: np.ndarray
  max_kl: np.ndarray
  entropy: np.ndarray
  max_gradient_norm: np.ndarray


def read_scores(workdir: pathlib.Path, floor: float) -> Scores:
  """What the seeds of a run came to, from its metrics.csv.

  Args:
    workdir: of a control or language run at one learning rate.
    floor: score of a policy that knows nothing; what counts before a seed's
      first score, and from an update that is not finite on.

  Returns:
    Scores [seeds].
  """
  score = score_of(workdir)
  names = ["kl_old_new", "entropy", "policy_gradient_norm"]
  count = COUNTS.get(score)
  if count:
    names.append(count)
  logged = run_directory.read_metrics(workdir, [score, *names])
  # What is not finite is written as an empty cell, and so is all after it.
  faulted = np.isnan(logged["kl_old_new"])
  counts = logged.get(count, np.ones_like(logged[score]))
  _, windows = curves.binned(
    logged["env_steps"],
    logged[score],
    np.where(faulted, 0.0, counts),
    num_windows=10,
  )
  updates = np.array_split(np.arange(len(faulted)), len(windows))
  gone = np.array([faulted[window].any(axis=0) for window in updates])
  windows = np.where(np.isnan(windows) | gone, floor, windows)
  return Scores(
    final=windows[-1],
    area=windows.mean(axis=0),
    best=windows.max(axis=0),
    faulted=faulted.any(axis=0),
    max_kl=np.fmax.reduce(logged["kl_old_new"]),
    entropy=logged["entropy"][updates[-1]].mean(axis=0),
    max_gradient_norm=np.fmax.reduce(logged["policy_gradient_norm"]),
  )


def floor_of(workdirs: Sequence[pathlib.Path]) -> float:
  """Score of a policy that knows nothing: the least mean of a first tenth.

  Args:
    workdirs: of runs on the same problem.

  Raises:
    ValueError: if no run has a score in its first tenth.
  """
  found = []
  for workdir in workdirs:
    score = score_of(workdir)
    values = run_directory.read_metrics(workdir, [score])[score]
    first = values[: -(-len(values) // 10)]
    if not np.isnan(first).all():
      found.append(float(np.nanmean(first)))
  if not found:
    raise ValueError(
      f"{workdirs[0]} and others: no episode ended in a tenth of training"
    )
  return min(found)


def score_of(workdir: pathlib.Path) -> str:
  """The metric that a run is judged by: its return, or share of right answers.

  Raises:
    ValueError: if the run has neither.
  """
  with open(workdir / "metrics.csv") as file:
    names = file.readline().strip().split(",")
  for name in ("episode_return_mean", "first_visit_correct", "correct"):
    if name in names:
      return name
  raise ValueError(f"{workdir}: metrics.csv has no score")


def stacked(scores: list) -> Scores:
  """Scores of [...] as one of [len(scores), ...]; lists may be nested."""
  if isinstance(scores, Scores):
    return scores
  inner = [stacked(item) for item in scores]
  return Scores(
    **{
      field.name: np.stack([getattr(item, field.name) for item in inner])
      for field in dataclasses.fields(Scores)
    }
  )


def collapsed(
  scores: Scores,
  floor: float,
  ceiling: float,
  min_entropy: float = 0.0,
  max_gradient_norm: float = np.inf,
) -> np.ndarray:
  """Whether runs had learned something and lost it, or went out of bounds.

  A run has collapsed if an update was not finite; if it lost half of what it
  had gained at its best, that being a tenth of the ceiling's gain or more; if
  it has become certain (entropy) of what is worth less than half of that gain;
  or if a gradient was too large.

  Args:
    scores: of runs.
    floor: score of a policy that knows nothing.
    ceiling: best score that any run came to.
    min_entropy: that of a policy that is certain, nats; 0 for no bound.
    max_gradient_norm: before clipping; infinite for no bound.

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
    floor: score of a policy that knows nothing.
    ceiling: best score that any cell of any algorithm came to.

  Returns:
    float[...], in [0, 1].
  """
  good = ceiling - _NEAR_BEST * (ceiling - floor)
  near = statistics.interquartile_mean(final) >= good
  near = near & (ceiling > floor)  # Where nothing was learned, nothing is good.
  return near.mean(axis=(-2, -1))


def robustness_interval(
  final: np.ndarray, floor: float, ceiling: float
) -> tuple[float, float]:
  """95% bootstrap interval of one algorithm's robustness area, over seeds.

  Seeds are resampled within every cell; cells are as they were chosen.

  Args:
    final: float[rows, rates, seeds].
    floor: as of `robustness_area`.
    ceiling: as of `robustness_area`.
  """
  low, high = statistics.stratified_interval(
    lambda drawn: robustness_area(drawn, floor, ceiling), final
  )
  return float(low), float(high)
