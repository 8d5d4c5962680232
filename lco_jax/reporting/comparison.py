"""Comparisons of algorithms over tasks, each at its own learning rate.

A result is what one algorithm came to on one task: scores of its seeds. Seeds
are shared: the same number is the same seed for every algorithm.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lco_jax.reporting import statistics, tables


class Result(NamedTuple):
  """What an algorithm came to on a task.

  Attributes:
    rates: the learning rates that its scores are of.
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
    tuple(rates[i] for i in dict.fromkeys(chosen.tolist())),
    {
      name: np.take_along_axis(own, chosen[None], axis=0)[0]
      for name, own in scores.items()
    },
  )


def task_rows(
  results: Mapping[str, Mapping[str, Result]], against: str | None
) -> list[dict[str, object]]:
  """A line for each task and algorithm, as IQM [95% interval].

  Args:
    results: {task: {algorithm: result}}.
    against: the algorithm that the others are tested against, seed by seed; p
      is corrected for the number of tests. None for no tests.
  """
  pairs = [
    (task, name)
    for task, own in results.items()
    for name in own
    if against in own and name != against
  ]
  p_values = {}
  if pairs:
    found = statistics.adjusted_p_values(
      np.array(
        [
          statistics.paired_p_value(
            results[task][name].score, results[task][against].score
          )
          for task, name in pairs
        ]
      )
    )
    p_values = dict(zip(pairs, found, strict=True))
  rows = []
  for task, own in results.items():
    for name, result in own.items():
      row = {
        "task": task,
        "algorithm": name,
        "rate": ", ".join(f"{rate:g}" for rate in result.rates),
      }
      for column, scores in result.scores.items():
        summary = statistics.summarize(scores)
        row[column] = tables.interval(summary["iqm"], *summary["ci95"])
      if p_values:
        p_value = p_values.get((task, name))
        row["p"] = "" if p_value is None else f"{p_value:.2g}"
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
    bounds: {task: (score that is 0, score that is 1)}.

  Returns:
    {algorithm: float[tasks, seeds]}.
  """
  scale = {task: max(high - low, 1e-12) for task, (low, high) in bounds.items()}
  return {
    name: np.stack(
      [
        (own[name].score - bounds[task][0]) / scale[task]
        for task, own in results.items()
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
    against: the algorithm that the others' runs are compared with.
  """

  def improvement(x, y):
    return np.float64(statistics.probability_of_improvement(x, y))

  rows = []
  for name, own in scores.items():
    row = {"algorithm": name, "all tasks": tables.interval(*_overall(own))}
    if against in scores:
      pair = own, scores[against]
      row[f"beats {against}"] = (
        ""
        if name == against
        else tables.interval(
          improvement(*pair),
          *statistics.stratified_interval(improvement, *pair),
        )
      )
    rows.append(row)
  return rows


def _overall(own: np.ndarray) -> tuple[float, float, float]:
  """IQM over all tasks' seeds, and its interval."""

  def middle(scores):
    return statistics.interquartile_mean(scores.reshape(-1))

  low, high = statistics.stratified_interval(middle, own)
  return float(middle(own)), float(low), float(high)
