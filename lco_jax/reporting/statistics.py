"""Statistics over seeds and tasks: means, intervals, comparisons.

The last axis is seeds; the axis before it, if needed, is tasks.
Source: Agarwal et al. 2021, arXiv:2108.13264.
"""

from collections.abc import Callable

import numpy as np
import scipy  # scipy.stats, which is slow to import, follows at its first use.


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
  """Mean of the middle half of the seeds, robust to outliers.

  Args:
    scores: float[..., seeds].
    axis: axis of the seeds.

  Returns:
    float[...].
  """
  return scipy.stats.trim_mean(scores, 0.25, axis=axis)


def bootstrap_interval(
  scores: np.ndarray, confidence: float = 0.95, num_resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap interval of the interquartile mean over seeds.

  The resampling is seeded, so repeated reports give the same interval.

  Args:
    scores: float[..., seeds].
    confidence: coverage in (0, 1).
    num_resamples: bootstrap resamples of the seeds.

  Returns:
    (low, high), float[...] each; both equal the score if there is one seed.
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
  """Percentile bootstrap interval of a statistic over tasks and seeds.

  Resamples the seeds of each task and algorithm independently; the tasks stay
  fixed.

  Args:
    statistic: arrays with the shapes of `scores` → float[...].
    *scores: float[..., tasks, seeds], one array per algorithm.
    confidence: coverage in (0, 1).
    num_resamples: bootstrap resamples.

  Returns:
    (low, high), float[...] each.
  """
  rng = np.random.default_rng(0)

  def resample(own):
    drawn = rng.integers(own.shape[-1], size=own.shape)
    return np.take_along_axis(own, drawn, axis=-1)

  found = [
    statistic(*(resample(own) for own in scores)) for _ in range(num_resamples)
  ]
  tail = (1 - confidence) / 2
  low, high = np.quantile(found, [tail, 1 - tail], axis=0)
  return low, high


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
  """Probability that a run of X beats a run of Y, averaged over tasks.

  Args:
    x: float[tasks, seeds], scores of X.
    y: float[tasks, seeds], scores of Y; ties count half.

  Returns:
    In [0, 1]; 0.5 if neither is better.
  """
  better = x[..., :, None] > y[..., None, :]
  equal = x[..., :, None] == y[..., None, :]
  return float(np.mean(better + 0.5 * equal))


def performance_profile(
  scores: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
  """Share of all tasks' runs that score above each threshold.

  Args:
    scores: float[tasks, seeds].
    thresholds: float[thresholds].

  Returns:
    float[thresholds].
  """
  return np.mean(scores[..., None] > thresholds, axis=(0, 1))


def paired_difference(
  x: np.ndarray, y: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
  """Mean difference of two algorithms on the same seeds, and its interval.

  The interval is Student's t, since a bootstrap of few seeds is too narrow.

  Args:
    x: float[seeds], at least two.
    y: float[seeds], with the same seeds.
    confidence: coverage in (0, 1).

  Returns:
    (mean of x - y, low, high).

  Raises:
    ValueError: if the scores are not one number for each seed.
  """
  _check_pairs(x, y)
  difference = np.subtract(x, y, dtype=np.float64)
  middle, error = difference.mean(), scipy.stats.sem(difference)
  margin = error * scipy.stats.t.ppf((1 + confidence) / 2, len(difference) - 1)
  return float(middle), float(middle - margin), float(middle + margin)


def paired_p_value(x: np.ndarray, y: np.ndarray) -> float:
  """Two-sided permutation test of two algorithms on the same seeds.

  Under the null hypothesis, a seed's two scores are exchangeable. The test is
  exact for n ≤ 12 seeds, with a smallest p-value of 2 / 2ⁿ; else 5,000 swaps of
  the seeds' scores are drawn.

  Args:
    x: float[seeds].
    y: float[seeds], with the same seeds.

  Returns:
    The p-value of the difference of means.

  Raises:
    ValueError: if the scores are not one number for each seed.
  """
  _check_pairs(x, y)
  if len(x) < 2 or np.array_equal(x, y):
    return 1.0  # Swapping cannot change the difference.
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


def _check_pairs(x: np.ndarray, y: np.ndarray) -> None:
  if np.ndim(x) != 1 or np.shape(x) != np.shape(y):
    raise ValueError(
      f"want scores [seeds] of both, got {np.shape(x)} and {np.shape(y)}"
    )


def adjust_p_values(p_values: np.ndarray) -> np.ndarray:
  """Benjamini and Hochberg's correction for multiple comparisons.

  Args:
    p_values: float[comparisons].

  Returns:
    float[comparisons]; rejecting all values ≤ q bounds the expected share of
    false rejections by q.
  """
  return scipy.stats.false_discovery_control(p_values, method="bh")


def summarize(per_seed: np.ndarray) -> dict:
  """Summarizes one score per seed as plain numbers for a summary file.

  Args:
    per_seed: float[seeds].

  Returns:
    {"per_seed", "mean", "iqm", "ci95"}; ci95 is the interval of the IQM. If a
    seed has no finite score, for example because no episode ended, its score
    and all statistics are None.
  """
  per_seed = np.asarray(per_seed, np.float64)
  if not np.isfinite(per_seed).all():
    # JSON has no NaN, and dropping a seed without a score would bias the mean.
    scores = [float(x) if np.isfinite(x) else None for x in per_seed]
    return {"per_seed": scores, "mean": None, "iqm": None, "ci95": [None, None]}
  low, high = bootstrap_interval(per_seed)
  return {
    "per_seed": per_seed.tolist(),
    "mean": float(per_seed.mean()),
    "iqm": float(interquartile_mean(per_seed)),
    "ci95": [float(low), float(high)],
  }
