"""Which metrics of an update must be finite, and where one is not."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Beginnings of metrics that are means of what an update may have none of, and
# then are NaN by right → the metric that counts it.
_COUNTS = {"episode_": "episodes", "first_visit_": "first_visits"}


class NonFiniteError(RuntimeError):
  """Training met a value that is not finite.

  Attributes:
    update: number of the update, from 1; it was not applied.
    seed: which.
    position: of the seed among those of the run.
  """

  def __init__(self, update: int, seed: int, position: int, what: str):
    super().__init__(f"update {update}, seed {seed}: {what}")
    self.update, self.seed, self.position = update, seed, position


def count_of(name: str) -> str | None:
  """The metric that says how much a metric is the mean of.

  None for metrics that are known of every update.
  """
  return next(
    (count for begin, count in _COUNTS.items() if name.startswith(begin)), None
  )


def always_finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Those metrics that must be finite for an update to be applied."""
  return {
    name: values for name, values in metrics.items() if count_of(name) is None
  }


def first_nonfinite(
  metrics: dict[str, np.ndarray],
) -> tuple[int, int, list[str]] | None:
  """The first update of a chunk in which a metric is not finite.

  Args:
    metrics: {name: float[updates, seeds]}.

  Returns:
    (update within the chunk, seed's position, names of the metrics), or None.
  """
  finite = _finite(metrics)
  if finite.all():
    return None
  update, seed = np.argwhere(~finite)[0]
  return (
    int(update),
    int(seed),
    [
      name
      for name, values in always_finite(metrics).items()
      if not np.isfinite(values[update, seed])
    ],
  )


def without_faults(
  metrics: dict[str, np.ndarray], gone: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Metrics of a chunk; NaN from a seed's first update that is not finite on.

  Args:
    metrics: {name: float[updates, seeds]}.
    gone: bool[seeds], those that had such an update before.

  Returns:
    (metrics, the seeds that have had one by now).
  """
  going = np.logical_and.accumulate(_finite(metrics) & ~gone, axis=0)
  metrics = {name: np.where(going, v, np.nan) for name, v in metrics.items()}
  return metrics, ~going[-1]


def _finite(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
  """Whether all metrics that must be finite are, bool[updates, seeds]."""
  return np.all(
    [np.isfinite(values) for values in always_finite(metrics).values()], axis=0
  )
