import json

import numpy as np
import pytest

from lco_jax.reporting import comparison, interval_plots


def test_no_seed_has_a_say_in_its_own_rate():
  """Rate 2 is best for seeds 0 and 1, rate 1 for seeds 2 and 3."""
  deciding = np.array([[1.0, 2.0, 30.0, 40.0], [10.0, 20.0, 3.0, 4.0]])
  other = np.arange(8.0).reshape(2, 4)
  result = comparison.cross_fit({"a": deciding, "b": other}, [1.0, 2.0])
  np.testing.assert_array_equal(result.score, [1.0, 2.0, 3.0, 4.0])
  np.testing.assert_array_equal(result.scores["b"], [0.0, 1.0, 6.0, 7.0])
  assert result.rates == (1.0, 1.0, 2.0, 2.0)
  agreed = comparison.cross_fit({"a": deciding[:, :2]}, [1.0, 2.0])
  np.testing.assert_array_equal(agreed.score, [10.0, 20.0])
  assert agreed.rates == (2.0, 2.0)
  with pytest.raises(ValueError, match="num_seeds"):
    comparison.cross_fit({"a": deciding[:, :1]}, [1.0, 2.0])


def _results():
  seeds = np.arange(8.0)
  scores = {
    "one": {"base": seeds, "better": seeds + 10, "same": seeds.copy()},
    "two": {"base": -seeds, "better": -seeds + 10, "same": -seeds},
  }
  return {
    task: {
      name: comparison.Result((0.1,) * 4 + (0.3,) * 4, {"return": own})
      for name, own in by_name.items()
    }
    for task, by_name in scores.items()
  }


def test_lines_of_tasks():
  rows = comparison.make_task_rows(_results())
  assert [(row["task"], row["algorithm"]) for row in rows[2:4]] == [
    ("one", "same"),
    ("two", "base"),
  ]
  assert rows[1]["rate"] == "0.1, 0.3"
  assert rows[1]["return"].startswith("13.500 [")
  assert "p" not in rows[0]


def test_differences_on_each_task():
  """Paired by seed; of four tests, two have the least p of 2 / 2⁸."""
  rows = comparison.make_task_rows(_results(), "base", "steps")
  assert [row["steps"] for row in rows] == ["one"] * 3 + ["two"] * 3
  found = [(row["difference from base"], row["p"]) for row in rows]
  same, better = ".000 [.000, .000]", "10.000 [10.000, 10.000]"
  little = f"{2 * 2 / 2**8:.2g}"
  assert found[:3] == [("", ""), (better, little), (same, "1")]
  assert "p" not in comparison.make_task_rows(_results(), "other")[0]


def test_lines_over_tasks():
  """All tasks have equal weight, independent of their scale."""
  results = _results()
  scores = comparison.normalize(
    results, {"one": (0.0, 20.0), "two": (-10.0, 10.0)}
  )
  np.testing.assert_allclose(scores["better"][0], (np.arange(8) + 10) / 20)
  np.testing.assert_allclose(scores["better"][1], (20 - np.arange(8)) / 20)
  rows = comparison.make_overall_rows(scores, "base")
  assert rows[0]["beats base"] == rows[0]["p"] == ""
  assert rows[1]["beats base"] == "1.000 [1.000, 1.000]"
  assert rows[2]["beats base"].startswith(".500 [") and rows[2]["p"] == "1"
  # 16 pairs, all better by as much: the least of 5,000 draws, of two tests.
  assert float(rows[1]["p"]) < 0.01
  assert rows[1]["all tasks"].startswith(".750 [")
  assert rows[1]["worst run"] == ".500"
  assert "beats base" not in comparison.make_overall_rows(scores, None)[0]


def test_tasks_that_tell_nothing_are_left_out():
  results = _results()
  scores = comparison.normalize(
    results, {"one": (0.0, 20.0), "two": (3.0, 3.0)}
  )
  assert scores["base"].shape == (1, 8)
  with pytest.raises(ValueError, match="one, two"):
    comparison.normalize(results, {"one": (1.0, 1.0), "two": (3.0, 3.0)})


def test_a_picture_of_intervals(tmp_path):
  results = _results()
  scores = comparison.normalize(results, {"one": (0, 1), "two": (0, 1)})
  paths = [tmp_path / "a.png", tmp_path / "a.svg"]
  interval_plots.save_intervals(paths, results, scores, "title")
  assert all(path.stat().st_size > 5_000 for path in paths)


def test_test_problems_have_no_say(tmp_path):
  """The rates' order differs there; a rate at which a seed stopped is none."""

  def cell(rate, validation, test, correct=0.5):
    path = tmp_path / rate
    path.mkdir()
    scores = {"per_seed": [test, test], "mean": test}
    summary = {
      "final_correct": {"mean": correct},
      "final_entropy": scores,
      # Samples are best where the greedy policy is worst.
      "validation": {
        "mean": validation,
        "pass_at_k": {"1": {"mean": 1 - validation}},
      },
      "evaluation": scores | {"pass_at_k": {"1": scores, "2": scores}},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path

  cells = {
    0.1: cell("a", validation=0.6, test=0.9),
    0.2: cell("b", validation=0.7, test=0.2),
    0.3: cell("c", validation=0.8, test=0.3, correct=None),
  }
  result = comparison.tune_on_validation(cells)
  assert result.rates == (0.2, 0.2)
  assert list(result.scores) == ["greedy", "pass@1", "entropy"]
  np.testing.assert_array_equal(result.score, [0.2, 0.2])
  by_samples = comparison.tune_on_validation(cells, "pass@1")
  assert by_samples.rates == (0.1, 0.1)
  assert list(by_samples.scores) == ["pass@1", "greedy", "entropy"]
  with pytest.raises(ValueError, match="every rate"):
    comparison.tune_on_validation({0.3: cells[0.3]})
