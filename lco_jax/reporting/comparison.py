"""Comparisons of algorithms over tasks, each at its own learning rate.

A result is what one algorithm came to on one task: scores of its seeds. Seeds
are shared: the same number is the same seed for every algorithm.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lco_jax.reporting import statistics, tables


class Result(NamedTuple):
  """What an algorithm came to on a task.

  Attributes:
    rates: the learning rate that each seed's scores are of; empty for none.
    scores: {name: float[seeds]}; the first is what is compared.
  """

  rates: tuple[float, ...]
  scores: dict[str, np.ndarray]

  @property
  def score(self) -> np.ndarray:
    """The score that is compared, float[seeds]."""
    return next(iter(self.scores.values()))


def cross_fitted(
  scores: Mapping[str, np.ndarray], rates: Sequence[float]
) -> Result:
  """Each half of the seeds at the rate that did best on the other half.

  So no seed has a say in the rate that it is judged at, and none is left out.

  Args:
    scores: {name: float[rates, seeds]}, two seeds or more; the first decides.
    rates: learning rates.

  Raises:
    ValueError: if there is one seed only.
  """
  deciding = next(iter(scores.values()))
  num_seeds = deciding.shape[-1]
  if num_seeds < 2:
    raise ValueError("num_seeds must be ≥ 2: one half tunes for the other")
  first = np.arange(num_seeds) < num_seeds // 2
  chosen = np.empty(num_seeds, int)
  for half in (first, ~first):
    chosen[half] = np.argmax(
      statistics.interquartile_mean(deciding[:, ~half]), axis=0
    )
  return Result(
    tuple(rates[i] for i in chosen),
    {
      name: np.take_along_axis(own, chosen[None], axis=0)[0]
      for name, own in scores.items()
    },
  )


def tuned_on_validation(runs: Mapping[float, pathlib.Path]) -> Result:
  """A language run at the rate that did best on validation problems.

  Args:
    runs: {learning rate: run directory}; one at which a seed stopped is none to
      choose.

  Raises:
    ValueError: if seeds stopped at every rate.
  """
  summaries = {rate: _summary(path) for rate, path in runs.items()}
  usable = {
    rate: summary["validation"]["greedy"]
    for rate, summary in summaries.items()
    if summary["final_correct"]["mean"] is not None
  }
  if not usable:
    path = next(iter(runs.values())).parent
    raise ValueError(f"{path}: seeds stopped at every rate")
  rate = max(usable, key=usable.get)
  found = of_language(runs[rate])
  return Result((rate,) * len(found.score), found.scores)


def of_language(path: pathlib.Path) -> Result:
  """What a language run came to on test problems, at whatever rate it has."""
  summary = _summary(path)
  found = {"greedy": summary["evaluation"]} | {
    f"pass@{k}": scores
    for k, scores in summary["evaluation"]["pass_at_k"].items()
    if k in ("1", "8")
  }
  found["entropy"] = summary["final_entropy"]
  scores = {name: np.array(own["per_seed"]) for name, own in found.items()}
  return Result((), scores)


def _summary(path: pathlib.Path) -> dict:
  return json.loads((path / "summary.json").read_text())


def task_rows(
  results: Mapping[str, Mapping[str, Result]],
) -> list[dict[str, object]]:
  """A line for each task and algorithm, as IQM [95% interval].

  Intervals are those of the seeds at the rates that were chosen.

  Args:
    results: {task: {algorithm: result}}.
  """
  rows = []
  for task, own in results.items():
    for name, result in own.items():
      rates = dict.fromkeys(f"{rate:g}" for rate in result.rates)
      row = {"task": task, "algorithm": name, "rate": ", ".join(rates)}
      for column, scores in result.scores.items():
        summary = statistics.summarize(scores)
        row[column] = tables.interval(summary["iqm"], *summary["ci95"])
      rows.append(row)
  return rows


def normalized(
  results: Mapping[str, Mapping[str, Result]],
  bounds: Mapping[str, tuple[float, float]],
) -> dict[str, np.ndarray]:
  """Scores of all tasks on one scale.

  Args:
    results: {task: {algorithm: result}}, the same algorithms and number of
      seeds on every task.
    bounds: {task: (score that is 0, score that is 1)}. A task where the two are
      the same tells nothing and is left out.

  Returns:
    {algorithm: float[tasks, seeds]}.

  Raises:
    ValueError: if no task is left.
  """
  scale = {t: high - low for t, (low, high) in bounds.items() if high > low}
  if not scale:
    raise ValueError(f"no algorithm learned anything on {', '.join(bounds)}")
  return {
    name: np.stack(
      [
        (results[task][name].score - bounds[task][0]) / gain
        for task, gain in scale.items()
      ]
    )
    for name in next(iter(results.values()))
  }


def overall_rows(
  scores: Mapping[str, np.ndarray], against: str | None
) -> list[dict[str, object]]:
  """A line for each algorithm, over all tasks.

  Args:
    scores: {algorithm: float[tasks, seeds]}, from `normalized`.
    against: the algorithm that the others' runs are compared with: by the
      probability that a run is better, and by a permutation test of the mean
      difference, paired by task and seed and corrected for the number of
      algorithms. None for no comparison.
  """

  def improvement(x, y):
    return np.float64(statistics.probability_of_improvement(x, y))

  others = [name for name in scores if against in scores and name != against]
  p_values = {}
  if others:
    found = [
      statistics.paired_p_value(scores[name].ravel(), scores[against].ravel())
      for name in others
    ]
    adjusted = statistics.adjusted_p_values(np.array(found))
    p_values = dict(zip(others, adjusted, strict=True))
  rows = []
  for name, own in scores.items():
    row = {
      "algorithm": name,
      "all tasks": tables.interval(*_overall(own)),
      "worst run": tables.short(float(own.min())),
    }
    if others:
      row |= {f"beats {against}": "", "p": ""}
    if name in others:
      pair = own, scores[against]
      row[f"beats {against}"] = tables.interval(
        improvement(*pair),
        *statistics.stratified_interval(improvement, *pair),
      )
      row["p"] = f"{p_values[name]:.2g}"
    rows.append(row)
  return rows


def _overall(own: np.ndarray) -> tuple[float, float, float]:
  """IQM over all tasks' seeds, and its interval."""

  def middle(scores):
    return statistics.interquartile_mean(scores.reshape(-1))

  low, high = statistics.stratified_interval(middle, own)
  return float(middle(own)), float(low), float(high)
