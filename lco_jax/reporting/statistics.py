"""Statistics over seeds, and over tasks: means, intervals, comparisons.

Seeds are the last axis, and tasks, where several are taken together, the one
before. Source: Agarwal et al. 2021, arXiv:2108.13264.
"""

from collections.abc import Callable

import numpy as np
import scipy.stats


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
  """Mean of the middle half of the seeds, robust to outliers on either side.

  Args:
    scores: float[..., seeds].
    axis: that of the seeds.

  Returns:
    float[...].
  """
  return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def bootstrap_interval(
  scores: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap interval of the interquartile mean over seeds.

  The resampling is seeded, so a report gives the same interval every time.

  Args:
    scores: float[..., seeds].
    confidence: coverage in (0, 1).
    num_resamples: bootstrap resamples of the seeds.

  Returns:
    (low, high), float[...] each; both the score itself for a single seed.
  """
  scores = np.asarray(scores, np.float64)
  if scores.shape[-1] == 1:
    return scores[..., 0], scores[..., 0]
  interval = scipy.stats.bootstrap(
    (scores,),
    interquartile_mean,
    axis=-1,
    confidence_level=confidence,
    n_resamples=num_resamples,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return interval.low, interval.high


def stratified_interval(
  statistic: Callable[..., np.ndarray],
  *scores: np.ndarray,
  confidence: float = 0.95,
  num_resamples: int = 2000,
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap interval of a statistic of several tasks' seeds.

  Seeds are resampled within each task, and for each algorithm apart: tasks are
  what was asked about, and stay.

  Args:
    statistic: arrays as `scores` → float[...].
    *scores: float[..., tasks, seeds], of one algorithm each.
    confidence: coverage in (0, 1).
    num_resamples: bootstrap resamples.

  Returns:
    (low, high), float[...] each.
  """
  rng = np.random.default_rng(0)

  def resampled(own):
    drawn = rng.integers(own.shape[-1], size=own.shape)
    return np.take_along_axis(own, drawn, axis=-1)

  found = [
    statistic(*(resampled(own) for own in scores)) for _ in range(num_resamples)
  ]
  tail = (1 - confidence) / 2
  low, high = np.quantile(found, [tail, 1 - tail], axis=0)
  return low, high


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
  """Probability that a run of X beats one of Y on a task, over all tasks.

  Args:
    x: float[tasks, seeds], scores of X.
    y: float[tasks, seeds], scores of Y; ties count half.

  Returns:
    In [0, 1]; 0.5 where neither is better.
  """
  better = x[..., :, None] > y[..., None, :]
  equal = x[..., :, None] == y[..., None, :]
  return float(np.mean(better + 0.5 * equal))


def performance_profile(
  scores: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
  """Share of runs, over all tasks, that score more than each threshold.

  Args:
    scores: float[tasks, seeds].
    thresholds: float[thresholds].

  Returns:
    float[thresholds].
  """
  return np.mean(scores[..., None] > thresholds, axis=(0, 1))


def paired_p_value(x: np.ndarray, y: np.ndarray) -> float:
  """Two-sided permutation test of two algorithms on the same seeds.

  Under the null hypothesis the two scores of a seed could be swapped. Exact for
  up to a dozen seeds; of n seeds no p-value is below 2 / 2ⁿ.

  Args:
    x: float[seeds].
    y: float[seeds], of the same seeds.

  Returns:
    The p-value of the difference of means.
  """
  if len(x) < 2 or np.array_equal(x, y):
    return 1.0  # No swap tells them apart.
  return float(
    scipy.stats.permutation_test(
      (x, y),
      lambda a, b, axis: np.mean(a - b, axis=axis),
      permutation_type="samples",
      vectorized=True,
      n_resamples=5000,
      rng=np.random.default_rng(0),
    ).pvalue
  )


def adjusted_p_values(p_values: np.ndarray) -> np.ndarray:
  """Benjamini and Hochberg's correction for many comparisons.

  Args:
    p_values: float[comparisons].

  Returns:
    float[comparisons]; rejecting those ≤ q keeps the expected share of false
    ones among the rejected below q.
  """
  return scipy.stats.false_discovery_control(p_values, method="bh")


def summarize(per_seed: np.ndarray) -> dict:
  """One score per seed as plain numbers for a summary file.

  Args:
    per_seed: float[seeds].

  Returns:
    {"per_seed", "mean", "iqm", "ci95"}; ci95 is the interval of the IQM. Where
    a seed has no finite score, as when no episode ended, it and all that is
    computed from it are None.
  """
  per_seed = np.asarray(per_seed, np.float64)
  if not np.isfinite(per_seed).all():
    # JSON has no NaN; and a seed without a score must not be dropped.
    scores = [float(x) if np.isfinite(x) else None for x in per_seed]
    return {"per_seed": scores, "mean": None, "iqm": None, "ci95": [None, None]}
  low, high = bootstrap_interval(per_seed)
  return {
    "per_seed": per_seed.tolist(),
    "mean": float(per_seed.mean()),
    "iqm": float(interquartile_mean(per_seed)),
    "ci95": [float(low), float(high)],
  }
