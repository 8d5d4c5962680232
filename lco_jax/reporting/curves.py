"""Learning curves from logged metrics."""

import pathlib

import numpy as np
from matplotlib import ticker

from lco_jax.reporting import statistics, styles

_COLOR = "#2563a8"
# Points of a curve; more cannot be distinguished in the figure.
_MAX_POINTS = 100


def bin_returns(
  steps: np.ndarray,
  returns: np.ndarray,
  episodes: np.ndarray,
  num_windows: int = _MAX_POINTS,
  gone: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Mean return per episode of each seed in windows of updates.

  A window without finished episodes repeats the seed's last value, or is NaN if
  there is none yet.

  Args:
    steps: float[updates], environment steps.
    returns: float[updates, seeds], mean return of the episodes that ended; NaN
      if none ended.
    episodes: float[updates, seeds], number of episodes that ended.
    num_windows: number of windows of equal length; at most one per update.
    gone: bool[updates, seeds], whether a seed had stopped; windows with such an
      update are NaN.

  Returns:
    (steps [windows], returns [windows, seeds]).
  """
  num_windows = min(num_windows, len(steps))
  windows = np.array_split(np.arange(len(steps)), num_windows)
  totals = np.where(episodes > 0, np.nan_to_num(returns) * episodes, 0.0)
  count = np.array([episodes[window].sum(0) for window in windows])
  total = np.array([totals[window].sum(0) for window in windows])
  means = np.divide(
    total, count, out=np.full_like(total, np.nan), where=count > 0
  )
  for previous, current in zip(means[:-1], means[1:], strict=True):
    current[:] = np.where(np.isnan(current), previous, current)
  if gone is not None:
    means[[gone[window].any(axis=0) for window in windows]] = np.nan
  return np.array([steps[window[-1]] for window in windows]), means


def last_tenth(values: np.ndarray) -> np.ndarray:
  """The last tenth of updates, rounded up, of values [updates, ...]."""
  return values[-_count_tenth(values) :]


def first_tenth(values: np.ndarray) -> np.ndarray:
  """The first tenth of updates, rounded up, of values [updates, ...]."""
  return values[: _count_tenth(values)]


def _count_tenth(values: np.ndarray) -> int:
  return -(-len(values) // 10)


def compute_final_scores(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Mean score per episode, or prompt, over the last tenth of training.

  If nothing was scored in it, for example because episodes are long, the mean
  is of the tenth that ends with the seed's last score.

  Args:
    scores: float[updates, seeds], mean score of the episodes that ended in an
      update; NaN if none ended.
    counts: float[updates, seeds], number of episodes that ended.

  Returns:
    float[seeds]; NaN for a seed without a score.
  """
  update = np.arange(len(counts))[:, None]
  length = _count_tenth(counts)
  last = np.max(np.where(counts > 0, update, -1), axis=0)
  end = np.where(last < len(counts) - length, last, len(counts) - 1)
  counted = np.where((update > end - length) & (update <= end), counts, 0)
  count = counted.sum(0)
  total = np.where(counted > 0, np.nan_to_num(scores) * counted, 0.0).sum(0)
  return np.divide(
    total, count, out=np.full_like(total, np.nan), where=count > 0
  )


def save_learning_curve(
  path: pathlib.Path,
  steps: np.ndarray,
  returns: np.ndarray,
  title: str,
  x_label: str = "environment steps",
  y_label: str = "episodic return (sampled policy)",
) -> None:
  """Draws the interquartile mean with its interval over thin per-seed curves.

  Args:
    path: PNG file to write.
    steps: float[windows], environment steps of each seed.
    returns: float[windows, seeds].
    title: title of the figure.
    x_label: label of the steps.
    y_label: label of the returns.
  """
  known = ~np.isnan(returns).any(axis=1)
  figure, axes = styles.make_figure(figsize=(6.4, 4.0), dpi=150)
  axes.plot(steps, returns, color=_COLOR, alpha=0.3, linewidth=0.7)
  if known.any():
    low, high = statistics.bootstrap_interval(returns[known])
    middle = statistics.interquartile_mean(returns[known])
    axes.fill_between(
      steps[known],
      low,
      high,
      color=_COLOR,
      alpha=0.25,
      linewidth=0,
      label="95% bootstrap interval",
    )
    axes.plot(
      steps[known],
      middle,
      color=_COLOR,
      linewidth=2,
      label="interquartile mean",
    )
  axes.plot(
    [],
    [],
    color=_COLOR,
    alpha=0.4,
    linewidth=0.7,
    label=f"each of {returns.shape[1]} seeds",
  )
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.set_title(title)
  axes.set_xlim(0, steps[-1])
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
  axes.grid(alpha=0.2)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, loc="best")
  figure.savefig(path)
