"""Comparisons of algorithms over tasks, each at its own tuned learning rate.

A result holds the scores of one algorithm's seeds on one task. Index i is the
same random seed for every algorithm.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lco_jax.reporting import statistics, tables

# Scores of language runs that rates can be chosen by.
LANGUAGE_SCORES = ("greedy", "pass@1")


class Result(NamedTuple):
  """Scores of an algorithm on a task.

  Attributes:
    rates: learning rate of each seed; empty if no rate was tuned.
    scores: {name: float[seeds]}; comparisons use the first.
  """

  rates: tuple[float, ...]
  scores: dict[str, np.ndarray]

  @property
  def score(self) -> np.ndarray:
    """The compared score, float[seeds]."""
    return next(iter(self.scores.values()))


def cross_fit(
  scores: Mapping[str, np.ndarray], rates: Sequence[float]
) -> Result:
  """Evaluates each half of the seeds at the other half's best rate.

  No seed influences the choice of its own rate, and all seeds are used.

  Args:
    scores: {name: float[rates, seeds]}, at least two seeds; the first score
      determines the best rate.
    rates: learning rates.

  Raises:
    ValueError: if there is only one seed.
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


def tune_on_validation(
  runs: Mapping[float, pathlib.Path], score: str = "greedy"
) -> Result:
  """Selects the language run with the best score on validation problems.

  Args:
    runs: {learning rate: run directory}; runs with a stopped seed are ignored.
    score: "greedy", or "pass@1", the accuracy of samples.

  Raises:
    ValueError: if seeds stopped at every rate.
  """
  summaries = {rate: _read_summary(path) for rate, path in runs.items()}
  usable = {
    rate: _find_scores(summary["validation"])[score]["mean"]
    for rate, summary in summaries.items()
    if summary["final_correct"]["mean"] is not None
  }
  if not usable:
    path = next(iter(runs.values())).parent
    raise ValueError(f"{path}: seeds stopped at every rate")
  rate = max(usable, key=usable.get)
  found = from_language_run(runs[rate], score)
  return Result((rate,) * len(found.score), found.scores)


def from_language_run(path: pathlib.Path, score: str = "greedy") -> Result:
  """Reads a language run's scores on test problems.

  Args:
    path: run directory.
    score: the one that comes first, and is compared.
  """
  summary = _read_summary(path)
  scores = _stack_scores(summary["evaluation"], score)
  scores["entropy"] = np.array(summary["final_entropy"]["per_seed"])
  return Result((), scores)


def from_before_training(path: pathlib.Path, score: str = "greedy") -> Result:
  """Reads the scores of the untrained model, the same for all seeds.

  Args:
    path: directory of the run.
    score: the one that comes first, and is compared.

  Raises:
    ValueError: if the run did not evaluate the model before it.
  """
  summary = _read_summary(path)
  if not summary["before"]:
    raise ValueError(f"{path}: summary.json has no scores before training")
  scores = {
    name: np.repeat(own, summary["num_seeds"])
    for name, own in _stack_scores(summary["before"], score).items()
  }
  # Entropy is a metric of training.
  return Result((), scores | {"entropy": np.full(summary["num_seeds"], np.nan)})


def _stack_scores(evaluation: Mapping, score: str) -> dict[str, np.ndarray]:
  """Stacks the scores of all seeds, the compared one first."""
  found = _find_scores(evaluation)
  found = {score: found.pop(score)} | found
  return {name: np.array(own["per_seed"]) for name, own in found.items()}


def _find_scores(evaluation: Mapping) -> dict[str, Mapping]:
  """Finds the scores of an evaluation: greedy, pass@1 and pass@8."""
  if "sampled" in evaluation:  # Of a pretrained model.
    return {"greedy": evaluation["greedy"], "pass@1": evaluation["sampled"]}
  return {"greedy": evaluation} | {
    f"pass@{k}": scores
    for k, scores in evaluation["pass_at_k"].items()
    if k in ("1", "8")
  }


def _read_summary(path: pathlib.Path) -> dict:
  return json.loads((path / "summary.json").read_text())


def make_task_rows(
  results: Mapping[str, Mapping[str, Result]],
  against: str | None = None,
  label: str = "task",
) -> list[dict[str, object]]:
  """Makes a row per task and algorithm, as IQM [95% interval].

  The intervals do not include the uncertainty of the chosen learning rates.

  Args:
    results: {task: {algorithm: result}}.
    against: baseline algorithm, or None. Rows of the others give the mean
      difference of the compared score, paired by seed, and the p-value of its
      permutation test, corrected for the number of differences.
    label: head of the tasks' column.
  """
  rows, pairs = [], []
  for task, own in results.items():
    for name, result in own.items():
      rates = dict.fromkeys(f"{rate:g}" for rate in result.rates)
      row = {label: task, "algorithm": name, "rate": ", ".join(rates)}
      for column, scores in result.scores.items():
        summary = statistics.summarize(scores)
        row[column] = tables.format_interval(summary["iqm"], *summary["ci95"])
      rows.append(row)
      if against in own and len(result.score) > 1:
        row |= {f"difference from {against}": "", "p": ""}
        if name != against:
          pairs.append((row, result.score, own[against].score))
  _add_differences(pairs, against)
  return rows


def _add_differences(pairs: Sequence[tuple], against: str | None) -> None:
  """Adds differences and p-values to rows of (row, scores, baseline's)."""
  if not pairs:
    return
  p_values = [statistics.paired_p_value(x, y) for _, x, y in pairs]
  adjusted = statistics.adjust_p_values(np.array(p_values))
  for (row, x, y), p_value in zip(pairs, adjusted, strict=True):
    found = statistics.paired_difference(x, y)
    row[f"difference from {against}"] = tables.format_interval(*found)
    row["p"] = f"{p_value:.2g}"


def normalize(
  results: Mapping[str, Mapping[str, Result]],
  bounds: Mapping[str, tuple[float, float]],
) -> dict[str, np.ndarray]:
  """Maps the scores of all tasks to a common scale.

  Args:
    results: {task: {algorithm: result}}, with the same algorithms and number of
      seeds on every task.
    bounds: {task: (score mapped to 0, score mapped to 1)}. Tasks with equal
      bounds are dropped.

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


def make_overall_rows(
  scores: Mapping[str, np.ndarray], against: str | None
) -> list[dict[str, object]]:
  """Makes a row per algorithm, over all tasks.

  Args:
    scores: {algorithm: float[tasks, seeds]}, from `normalize`.
    against: baseline algorithm, or None. Rows of the others give the
      probability that their runs are better, and the p-value of a permutation
      test of the mean difference, paired by task and seed and corrected for the
      number of algorithms.
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
    adjusted = statistics.adjust_p_values(np.array(found))
    p_values = dict(zip(others, adjusted, strict=True))
  rows = []
  for name, own in scores.items():
    row = {
      "algorithm": name,
      "all tasks": tables.format_interval(*_summarize_tasks(own)),
      "worst run": tables.format_number(float(own.min())),
    }
    if others:
      row |= {f"beats {against}": "", "p": ""}
    if name in others:
      pair = own, scores[against]
      row[f"beats {against}"] = tables.format_interval(
        improvement(*pair),
        *statistics.stratified_interval(improvement, *pair),
      )
      row["p"] = f"{p_values[name]:.2g}"
    rows.append(row)
  return rows


def _summarize_tasks(own: np.ndarray) -> tuple[float, float, float]:
  """Computes the IQM over the seeds of all tasks and its interval."""

  def middle(scores):
    return statistics.interquartile_mean(scores.reshape(-1))

  low, high = statistics.stratified_interval(middle, own)
  return float(middle(own)), float(low), float(high)
