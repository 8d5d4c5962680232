import json

import numpy as np
import pytest
import scipy.stats

from lco_jax.reporting import statistics


def test_interquartile_mean_drops_a_quarter_on_each_side():
  scores = np.array([1000.0, 1, 2, 3, 4, 5, 6, -1000])
  assert statistics.interquartile_mean(scores) == np.mean([2, 3, 4, 5])
  rows = np.stack([scores, scores + 1])
  np.testing.assert_allclose(statistics.interquartile_mean(rows), [3.5, 4.5])


def test_interval_covers_the_mean_about_as_often_as_it_says():
  """200 experiments of 20 normal seeds: 95% coverage, bootstrap a bit less."""
  scores = np.random.default_rng(0).normal(size=(200, 20))
  low, high = statistics.bootstrap_interval(scores, num_resamples=500)
  coverage = ((low <= 0) & (high >= 0)).mean()
  assert 0.87 < coverage < 0.99


def test_interval_is_the_same_every_time_and_a_point_for_one_seed():
  scores = np.random.default_rng(0).normal(size=8)
  first = statistics.bootstrap_interval(scores)
  assert first == statistics.bootstrap_interval(scores)
  assert first[0] < statistics.interquartile_mean(scores) < first[1]
  assert statistics.bootstrap_interval(np.array([3.0])) == (3.0, 3.0)


def test_equal_seeds_have_an_interval_of_no_width():
  result = statistics.summarize(np.full(8, 500.0))
  assert result["ci95"] == [500.0, 500.0]


def test_summary_is_json_even_without_episodes():
  result = statistics.summarize(np.array([1.0, np.nan, 3.0]))
  assert result["per_seed"] == [1.0, None, 3.0]
  assert result["mean"] is None
  json.dumps(result, allow_nan=False)


# Three tasks and eight seeds; what rliable 1.2 makes of them, with 20,000 and
# 5,000 resamples.
_X = np.array(
  [
    [1.0, 0.55, 1.03, 0.69, 1.05, 1.35, 0.05, 0.88],
    [1.15, 0.77, 1.67, 1.24, 0.53, 0.33, 0.36, 0.37],
    [0.86, 0.5, 0.75, 1.18, 0.99, 0.77, 0.08, 1.14],
  ]
)
_Y = np.array(
  [
    [0.78, 0.43, -0.07, 0.3, 0.68, 0.64, 0.09, -0.07],
    [0.61, 0.68, 0.46, 1.23, 1.14, 0.76, 0.74, 1.13],
    [-0.56, 0.76, 0.21, 0.3, 0.41, 0.73, 1.38, 0.76],
  ]
)


def _iqm_of_runs(scores):
  return statistics.interquartile_mean(scores.reshape(-1))


def test_against_rliable():
  np.testing.assert_allclose(_iqm_of_runs(_X), 0.8225, rtol=1e-6)
  np.testing.assert_allclose(_iqm_of_runs(_Y), 0.6, rtol=1e-6)
  np.testing.assert_allclose(
    statistics.performance_profile(_X, np.array([0.0, 0.5, 1.0, 1.5])),
    [1.0, 0.75, 1 / 3, 1 / 24],
  )
  np.testing.assert_allclose(
    statistics.probability_of_improvement(_X, _Y), 2 / 3, rtol=1e-6
  )
  assert statistics.probability_of_improvement(_X, _X) == 0.5
  np.testing.assert_allclose(
    statistics.stratified_interval(_iqm_of_runs, _X),
    [0.63167, 0.9975],
    atol=0.02,
  )
  np.testing.assert_allclose(
    statistics.stratified_interval(
      statistics.probability_of_improvement, _X, _Y
    ),
    [0.51042, 0.82292],
    atol=0.02,
  )


def test_paired_differences():
  """Eight seeds, all better: 2 of 2⁸ swaps are as extreme."""
  x = np.arange(8.0)
  assert statistics.paired_p_value(x + 1, x) == 2 / 2**8
  assert statistics.paired_p_value(x, x) == 1.0
  assert statistics.paired_p_value(np.ones(1), np.zeros(1)) == 1.0
  with pytest.raises(ValueError, match=r"want scores \[seeds\]"):
    statistics.paired_p_value(x[None], x[None])
  # What seeds have in common does not hide a difference, as it would unpaired.
  noise = 100 * np.random.default_rng(0).normal(size=8)
  assert statistics.paired_p_value(noise + 1 + 0.1 * x, noise) < 0.01
  swapped = np.where(np.arange(8) % 2, x + 1, x - 1)
  assert statistics.paired_p_value(swapped, x) > 0.5


def test_the_interval_of_a_paired_difference():
  """Against SciPy's test, and by its coverage of the true mean."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 4))
  found = statistics.paired_difference(x, y, confidence=0.9)
  expected = scipy.stats.ttest_rel(x, y).confidence_interval(0.9)
  np.testing.assert_allclose(found, [np.mean(x - y), *expected], rtol=1e-12)
  assert statistics.paired_difference(x + 1, x)[1] == pytest.approx(1)
  covered = [
    low <= 0 <= high
    for _, low, high in (
      statistics.paired_difference(*rng.normal(size=(2, 4)))
      for _ in range(2000)
    )
  ]
  assert 0.935 < np.mean(covered) < 0.965
  with pytest.raises(ValueError, match=r"want scores \[seeds\]"):
    statistics.paired_difference(x, y[:3])


def test_many_comparisons_are_paid_for():
  """By hand: p(i) · n / i, from the largest down."""
  np.testing.assert_allclose(
    statistics.adjust_p_values(np.array([0.01, 0.04, 0.03, 0.005])),
    [0.02, 0.04, 0.04, 0.02],
  )
