import json

import numpy as np

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
