"""Which metrics of an update must be finite, and where one is not.

A metric may be NaN where it is a mean of values that an update may have none
of. `counts` names those: {metric: metric that counts its values}, as of
`program.Training`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


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


def always_finite(
  metrics: Mapping[str, Any], counts: Mapping[str, str]
) -> dict[str, Any]:
  """Those metrics that must be finite for an update to be applied."""
  return {k: values for k, values in metrics.items() if k not in counts}


def first_nonfinite(
  metrics: dict[str, np.ndarray], counts: Mapping[str, str]
) -> tuple[int, int, list[str]] | None:
  """The first update of a chunk in which a metric is not finite.

  Args:
    metrics: {name: float[updates, seeds]}.
    counts: names those that may be NaN.

  Returns:
    (update within the chunk, seed's position, names of the metrics), or None.
  """
  finite = _finite(metrics, counts)
  if finite.all():
    return None
  update, seed = np.argwhere(~finite)[0]
  return (
    int(update),
    int(seed),
    [
      name
      for name, values in always_finite(metrics, counts).items()
      if not np.isfinite(values[update, seed])
    ],
  )


def without_faults(
  metrics: dict[str, np.ndarray], gone: np.ndarray, counts: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Metrics of a chunk; NaN from a seed's first update that is not finite on.

  Args:
    metrics: {name: float[updates, seeds]}.
    gone: bool[seeds], those that had such an update before.
    counts: names those metrics that may be NaN.

  Returns:
    (metrics, the seeds that have had one by now).
  """
  going = np.logical_and.accumulate(_finite(metrics, counts) & ~gone, axis=0)
  metrics = {name: np.where(going, v, np.nan) for name, v in metrics.items()}
  return metrics, ~going[-1]


def _finite(
  metrics: Mapping[str, np.ndarray], counts: Mapping[str, str]
) -> np.ndarray:
  """Whether all metrics that must be finite are, bool[updates, seeds]."""
  required = always_finite(metrics, counts)
  return np.all([np.isfinite(v) for v in required.values()], axis=0)
