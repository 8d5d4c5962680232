import csv

import numpy as np
import pytest

from lco_jax.reporting import stability

_COUNTS = {
  "episode_return_mean": "episodes",
  "first_visit_correct": "first_visits",
}


def _write(path, score, kl, entropy, name="correct"):
  """A metrics.csv of arrays [updates, seeds]; NaN is an empty cell."""
  path.mkdir()
  columns = {
    name: score,
    "kl_old_new": kl,
    "entropy": entropy,
    "policy_gradient_norm": 2 * np.asarray(kl),
  }
  if name in _COUNTS:
    columns[_COUNTS[name]] = np.where(np.isnan(score), 0, 3)
  with open(path / "metrics.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["update", "env_steps", "seed", *columns])
    for update, seed in np.ndindex(np.shape(score)):
      values = [np.asarray(c)[update, seed] for c in columns.values()]
      cells = ["" if np.isnan(v) else repr(float(v)) for v in values]
      writer.writerow([update + 1, 10 * (update + 1), seed, *cells])


def test_scores_of_a_run(tmp_path):
  """Ten windows of two updates; the second seed stops at its sixteenth."""
  score = np.stack([np.linspace(0.05, 1.0, 20), np.full(20, 0.6)], axis=1)
  kl = np.full((20, 2), 0.1)
  kl[4, 0] = 0.7
  entropy = np.full((20, 2), 0.5)
  entropy[18:, 0] = [0.1, 0.3]
  for array in (score, kl, entropy):
    array[15:, 1] = np.nan
  _write(tmp_path / "run", score, kl, entropy)
  found = stability.read_scores(tmp_path / "run", floor=0.0)
  np.testing.assert_array_equal(found.faulted, [False, True])
  np.testing.assert_allclose(found.final, [0.975, 0.0])
  np.testing.assert_allclose(found.best, [0.975, 0.6])
  # From the window of the fault on it is worth nothing.
  np.testing.assert_allclose(found.area, [0.525, 0.6 * 7 / 10])
  np.testing.assert_allclose(found.max_kl, [0.7, 0.1])
  np.testing.assert_allclose(found.max_gradient_norm, [1.4, 0.2])
  np.testing.assert_allclose(found.entropy, [0.2, np.nan])
  np.testing.assert_allclose(
    stability.estimate_floor([tmp_path / "run"]), (0.05 + 0.1 + 0.6 + 0.6) / 4
  )
  _write(tmp_path / "better", score + 1.0, kl, entropy)
  both = [tmp_path / "better", tmp_path / "run"]
  assert stability.estimate_floor(both) == stability.estimate_floor(both[1:])
  assert stability.find_score(tmp_path / "run") == "correct"


@pytest.mark.parametrize("name", list(_COUNTS))
def test_windows_without_an_episode_keep_the_last_known_return(tmp_path, name):
  score = np.full((20, 1), np.nan)
  score[5], score[14] = 10.0, 40.0
  fine = np.full((20, 1), 0.1)
  _write(tmp_path / "run", score, fine, fine, name)
  found = stability.read_scores(tmp_path / "run", floor=-1.0)
  windows = [-1, -1, 10, 10, 10, 10, 10, 40, 40, 40]
  np.testing.assert_allclose(found.area, np.mean(windows))
  assert found.final == 40 and not found.faulted
  with pytest.raises(ValueError, match="no episode ended"):
    stability.estimate_floor([tmp_path / "run"])


def test_what_has_no_score_is_named(tmp_path):
  one = np.ones((2, 1))
  _write(tmp_path / "run", one, one, one, "loss")
  with pytest.raises(ValueError, match="run"):
    stability.find_score(tmp_path / "run")


def _scores(final, best, entropy=1.0, faulted=False, max_gradient_norm=1.0):
  values = (final, final, best, faulted, 0.0, entropy, max_gradient_norm)
  names = list(stability.Scores.__dataclass_fields__)
  return stability.Scores(
    **{k: np.array([v]) for k, v in zip(names, values, strict=True)}
  )


@pytest.mark.parametrize(
  ("scores", "collapsed"),
  [
    (_scores(final=480, best=500), False),
    (_scores(final=261, best=500), False),  # Half of the gain is left.
    (_scores(final=259, best=500), True),
    (_scores(final=20, best=60), False),  # It had hardly learned anything.
    (_scores(final=20, best=70), True),
    (_scores(final=9, best=20), False),  # Nor this, but see the next.
    (_scores(final=9, best=20, entropy=1e-4), True),
    (_scores(final=500, best=500, entropy=1e-4), False),  # Rightly certain.
    (_scores(final=500, best=500, faulted=True), True),
    (_scores(final=500, best=500, max_gradient_norm=11.0), True),
  ],
)
def test_what_counts_as_collapsed(scores, collapsed):
  found = stability.detect_collapse(
    scores, floor=20, ceiling=500, min_entropy=0.01, max_gradient_norm=10.0
  )
  assert found == [collapsed]


def test_robustness_is_the_share_of_good_cells():
  """Two rows and three rates; within 5% of the gain from 100 to 500 is 480."""
  final = np.full((2, 3, 8), 100.0)
  final[0, :2] = [[481.0], [479.0]]
  final[1, 2] = 500.0
  assert stability.robustness_area(final, 100, 500) == 2 / 6
  assert stability.robustness_interval(final, 100, 500) == (2 / 6, 2 / 6)
  assert stability.robustness_area(final, 500, 500) == 0
  # A cell that two of eight seeds fail in is good by its IQM, not for sure.
  final[1, 1] = [500.0] * 6 + [100.0] * 2
  low, high = stability.robustness_interval(final, 100, 500)
  assert stability.robustness_area(final, 100, 500) == 3 / 6
  assert low == 2 / 6 and high == 3 / 6


def test_scores_are_stacked():
  one = _scores(final=1, best=2)
  stacked = stability.stack_scores([[one, one, one], [one, one, one]])
  assert stacked.final.shape == (2, 3, 1)
