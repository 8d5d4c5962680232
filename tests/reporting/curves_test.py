import os
import subprocess
import sys

import numpy as np

from lco_jax.reporting import curves, tables


def test_windows_weigh_by_episodes_and_keep_the_last_value():
  steps = np.arange(1, 201) * 10.0
  returns = np.full((200, 1), np.nan)
  episodes = np.zeros((200, 1))
  returns[2], episodes[2] = 1.0, 3
  returns[3], episodes[3] = 5.0, 1
  at, means = curves.bin_returns(steps, returns, episodes)
  assert at[0] == 20 and at[-1] == 2000 and len(at) == 100
  assert np.isnan(means[0, 0])
  np.testing.assert_array_equal(means[1:, 0], 2.0)


def test_final_scores_are_of_the_last_tenth():
  returns = np.arange(100.0)[:, None] * np.ones((1, 2))
  episodes = np.ones((100, 2))
  episodes[90:, 1] = 0
  final = curves.compute_final_scores(returns, episodes)
  assert final[0] == np.arange(90, 100).mean()
  # Nothing ended there: the tenth that ends with the last episode.
  assert final[1] == np.arange(80, 90).mean()
  episodes[80:90, 1] = [0, 3, 0, 0, 0, 0, 0, 1, 0, 0]
  final = curves.compute_final_scores(returns, episodes)
  assert final[1] == (78 + 79 + 3 * 81 + 87) / 6
  episodes[:, 0] = 0
  assert np.isnan(curves.compute_final_scores(returns, episodes)[0])


def test_notebooks_keep_their_way_to_show_figures():
  """Importing all of reporting changes no setting of matplotlib."""
  code = (
    "import matplotlib; before = dict(matplotlib.rcParams);"
    "from lco_jax.reporting import curves, heat_maps, interval_plots;"
    "from lco_jax.reporting import landscape, report, simplex;"
    "import sys; assert dict(matplotlib.rcParams) == before;"
    "assert 'matplotlib.pyplot' not in sys.modules"
  )
  environment = os.environ | {"MPLBACKEND": "svg"}
  subprocess.run(
    [sys.executable, "-c", code], check=True, timeout=120, env=environment
  )


def test_picture_is_written_even_where_no_episode_ended(tmp_path):
  steps = np.arange(5.0)
  for name, returns in (
    ("none", np.full((5, 2), np.nan)),
    ("some", np.random.default_rng(0).normal(size=(5, 8))),
  ):
    path = tmp_path / f"{name}.png"
    curves.save_learning_curve(path, steps, returns, "title")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_table_fits_a_terminal():
  score = {
    "per_seed": [1.0, 2.0, None],
    "mean": None,
    "iqm": 123.456,
    "ci95": [-1234.5, 1234.5],
  }
  evaluation = {"backend": "gymnasium", "episodes": 100, **score}
  text = tables.format_run(
    {
      "env": "CartPole-v1",
      "learning_rate": 1e-3,
      "algorithm": "lco_mse",
      "num_seeds": 3,
      "total_steps": 500_000,
      "compile_seconds": 1.0,
      "train_seconds": 2.0,
      "steps_per_second": 1e5,
      "final_return": score,
      "evaluation": evaluation,
      "evaluation_sampled": evaluation,
    }
  )
  assert max(map(len, text.splitlines())) <= 80
  assert "123.5" in text and "–" in text
