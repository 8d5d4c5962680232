"""Plots of algorithms' scores with intervals, over tasks or a setting."""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lco_jax.reporting import comparison, statistics, styles

# Panels beside each other: more would be too small on a page.
_COLUMNS = 5


def save_intervals(
  paths: Sequence[pathlib.Path],
  results: Mapping[str, Mapping[str, comparison.Result]],
  scores: Mapping[str, np.ndarray],
  title: str,
) -> None:
  """Draws intervals on each task and the performance profile over all tasks.

  Args:
    paths: files to write; the suffix determines the format.
    results: {task: {algorithm: result}}.
    scores: {algorithm: float[tasks, seeds]}, from `normalize`.
    title: title of the figure.
  """
  names = list(scores)
  drawn = [styles.line_style(index) for index in range(len(names))]
  count = len(results) + 1
  rows = math.ceil(count / _COLUMNS)
  columns = math.ceil(count / rows)
  figure, axes = styles.make_figure(
    rows,
    columns,
    figsize=(
      3.2 * columns + 1.5,  # The legend's.
      0.3 + rows * max(1.1 + 0.3 * len(names), 2.3),
    ),
    squeeze=False,
  )
  for panel in axes.flat[count:]:
    panel.set_visible(False)
  for panel, (task, own) in zip(axes.flat, results.items(), strict=False):
    for row, name in enumerate(names):
      score = own[name].score
      middle = statistics.interquartile_mean(score)
      low, high = statistics.bootstrap_interval(score)
      panel.plot(
        [low, high], [row, row], color=drawn[row]["color"], linewidth=4
      )
      panel.plot(middle, row, "|", color="black", markersize=11)
      panel.plot(score, [row] * len(score), ".", color="0.45", markersize=3)
    panel.set_title(task)
    panel.set_xlabel(next(iter(own[names[0]].scores)))
    panel.set_yticks(range(len(names)), names if panel in axes[:, 0] else [])
    panel.locator_params(axis="x", nbins=4)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
  profiles = axes.flat[count - 1]
  thresholds = np.linspace(-0.1, 1.1, 121)
  for name, style in zip(names, drawn, strict=True):
    profile = statistics.performance_profile(scores[name], thresholds)
    profiles.plot(thresholds, profile, label=name, **style)
  figure.legend(loc="outside right center", frameon=False)
  profiles.set_title("all tasks")
  profiles.set_xlabel("normalised score")
  profiles.set_ylabel("share of runs above it")
  profiles.grid(alpha=0.3)
  figure.suptitle(title)
  for path in paths:
    figure.savefig(path, dpi=120)


def save_rows(
  paths: Sequence[pathlib.Path],
  results: Mapping[str, Mapping[str, comparison.Result]],
  row_label: str,
  score_label: str,
  title: str,
) -> None:
  """Draws the score over the values of a setting, a line per algorithm.

  Args:
    paths: files to write; the suffix determines the format.
    results: {value of the setting: {algorithm: result}}.
    row_label: name of the setting.
    score_label: label of the score.
    title: title of the figure.
  """
  figure, axis = styles.make_figure(figsize=(6.5, 3.6))
  names = list(next(iter(results.values())))
  # Beside each other, as intervals that overlap cannot be read.
  shifts = 0.07 * (np.arange(len(names)) - (len(names) - 1) / 2)
  for index, (name, shift) in enumerate(zip(names, shifts, strict=True)):
    scores = np.stack([own[name].score for own in results.values()])
    middle = statistics.interquartile_mean(scores)
    low, high = statistics.bootstrap_interval(scores)
    style = styles.line_style(index)
    at = np.arange(len(results)) + shift
    axis.plot(at, middle, marker="o", label=name, **style)
    axis.vlines(at, low, high, color=style["color"], linewidth=2.5, alpha=0.6)
  axis.set_xticks(range(len(results)), list(results))
  axis.set_xlabel(row_label)
  axis.set_ylabel(score_label)
  axis.grid(axis="y", alpha=0.3)
  figure.legend(loc="outside right upper", frameon=False)
  axis.set_title(title)
  for path in paths:
    figure.savefig(path, dpi=120)
