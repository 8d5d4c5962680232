"""Statistics over seeds: the interquartile mean and its bootstrap interval.

Source: Agarwal et al. 2021, arXiv:2108.13264.
"""

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
