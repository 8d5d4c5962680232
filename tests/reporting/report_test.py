"""The report of hand-written runs, and its page in a browser."""

import csv
import html
import itertools
import json
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest

from lco_jax.reporting import recorded, report, styles
from tests import scripts

# Linear RGB as seen; source: Machado et al. 2009, severity 1.
_VISIONS = {
  "full": np.eye(3),
  "protanopia": np.array(
    [
      [0.152286, 1.052583, -0.204868],
      [0.114503, 0.786281, 0.099216],
      [-0.003882, -0.048116, 1.051998],
    ]
  ),
  "deuteranopia": np.array(
    [
      [0.367322, 0.860646, -0.227968],
      [0.280085, 0.672501, 0.047413],
      [-0.011820, 0.042940, 0.968881],
    ]
  ),
}


def _linearize(color):
  c = np.array(matplotlib.colors.to_rgb(color))
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _to_lab(linear):
  """CIELAB of linear sRGB, white D65."""
  to_xyz = np.array(
    [
      [0.4124, 0.3576, 0.1805],
      [0.2126, 0.7152, 0.0722],
      [0.0193, 0.1192, 0.9505],
    ]
  )
  xyz = to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089]
  f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _write(path, algorithm, scores, summary=None, updates=20, **settings):
  """A run of 20 updates with final scores [seeds]; NaN for a stopped seed."""
  path.mkdir(parents=True)
  config = {
    "environment": "Catch </script>",
    "algorithm": algorithm,
    "seed": 0,
    "total_steps": 2000,
    "num_envs": 10,
    "num_steps": 10,
  }
  (path / "config.json").write_text(json.dumps(config | settings))
  if summary is not None:
    (path / "summary.json").write_text(json.dumps(summary))
  with open(path / "metrics.csv", "w", newline="") as file:
    writer = csv.writer(file)
    columns = ["entropy", "episode_return_mean", "episodes", "policy_loss"]
    writer.writerow(["update", "env_steps", "seed", *columns])
    for update in range(1, updates + 1):
      for seed, score in enumerate(scores):
        stopped = np.isnan(score) and update > 10
        value = 1.0 if np.isnan(score) else score * update / 20
        cells = [0.5, value, 2, 0.1 * update]
        writer.writerow(
          [update, 100 * update, seed, *([""] * 4 if stopped else cells)]
        )
  return path


@pytest.fixture
def runs(tmp_path):
  root = tmp_path / "runs"
  _write(root / "a", "lco_mse", [5.0, 6.0, 7.0, 8.0], beta=1.0)
  _write(root / "b", "lco_mse", [1.0, 2.0, 3.0, 4.0], beta=0.1)
  _write(root / "c", "ppo", [4.0, 5.0, 6.0, 7.0], beta=1.0)
  _write(root / "d", "ppo", [9.0, 9.0, 9.0, np.nan], beta=0.1)
  _write(root / "c" / "warm_start", "sft", [1.0])
  return root


def test_runs_are_found_and_told_apart(runs, tmp_path):
  found = recorded.find([runs])
  assert [path.name for path in found] == ["a", "b", "c", "d"]
  loaded = [recorded.load(path) for path in found]
  assert report.make_labels(loaded) == [
    "lco_mse beta=1.0",
    "lco_mse beta=0.1",
    "ppo beta=1.0",
    "ppo beta=0.1",
  ]
  same = [loaded[0], loaded[0]]
  assert all(str(runs / "a") in label for label in report.make_labels(same))
  # The last two of twenty updates.
  np.testing.assert_allclose(loaded[0].final, np.arange(5, 9) * 0.975)
  np.testing.assert_array_equal(np.isnan(loaded[3].final), [0, 0, 0, 1])
  begun = _write(tmp_path / "begun", "ppo", [])
  assert recorded.load(begun) is None
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty"):
    recorded.find([tmp_path / "empty"])


def test_runs_that_differ_in_seeds_alone_are_one(tmp_path):
  def write(name, scores, seed, accuracy, **settings):
    return recorded.load(
      _write(
        tmp_path / name,
        "ppo",
        scores,
        {"evaluation": {"greedy": {"per_seed": accuracy}}},
        seed=seed,
        num_seeds=len(scores),
        **settings,
      )
    )

  late = write("late", [7.0], 2, [0.7], rate=1, keep_checkpoints=3)
  early = write("early", [5.0, np.nan], 0, [0.5, None], rate=1)
  (run,) = recorded.joined([late, early])
  assert run.seeds == (0, 1, 2)
  assert run.paths == (tmp_path / "late", tmp_path / "early")
  np.testing.assert_allclose(run.final, np.array([5, np.nan, 7]) * 0.975)
  np.testing.assert_array_equal(run.evaluated["greedy"], [0.5, np.nan, 0.7])
  for name, values in run.metrics.items():
    np.testing.assert_array_equal(values[:, :2], early.metrics[name])
    np.testing.assert_array_equal(values[:, 2:], late.metrics[name])
  for kept_apart in (
    write("again", [7.0], 2, [0.7], rate=1),
    write("other", [7.0], 3, [0.7], rate=2),
    write("begun", [7.0], 3, [0.7], rate=1, updates=9),
  ):
    assert len(recorded.joined([late, kept_apart, early])) == 2


@pytest.mark.parametrize(
  "summary",
  [
    {"evaluation": {"per_seed": [1]}, "evaluation_sampled": {"per_seed": [2]}},
    {"evaluation": {"per_seed": [1.0], "greedy": 1.0,
                    "pass_at_k": {"1": {"per_seed": [2]}}}},
    {"evaluation": {"greedy": {"per_seed": [1]}, "sampled": {"per_seed": [2]}}},
  ],
  ids=["control", "language", "pretrained"],
)  # fmt: skip
def test_scores_of_learned_policies(tmp_path, summary):
  path = _write(tmp_path / "run", "ppo", [5.0], summary)
  run = recorded.load(path)
  assert {name: own.tolist() for name, own in run.evaluated.items()} == {
    "greedy": [1.0],
    "sampled": [2.0],
  }
  other = recorded.load(_write(tmp_path / "other", "lco_mse", [4.0]))
  rows = report.summarize_runs([run, other])
  assert [row["greedy"] for row in rows] == [1.0, None]
  report.write([run, other], tmp_path)
  assert "| 2.000 [2.000, 2.000] |" in (tmp_path / "scores.md").read_text()
  (path / "summary.json").write_text("{")
  with pytest.raises(ValueError, match="summary.json is damaged"):
    recorded.load(path)


def test_no_seed_is_dropped(runs):
  """A run with a stopped seed has no score and is listed last."""
  rows = report.summarize_runs(
    [recorded.load(path) for path in recorded.find([runs])]
  )
  assert [row["run"] for row in rows] == [
    "lco_mse beta=1.0",
    "ppo beta=1.0",
    "lco_mse beta=0.1",
    "ppo beta=0.1",
  ]
  assert rows[-1]["IQM"] is None and rows[-1]["stopped"] == 1
  np.testing.assert_allclose(rows[0]["IQM"], 6.5 * 0.975)


def test_a_run_without_new_prompts_at_the_end_has_not_stopped(tmp_path):
  """Its score is the last that it had."""
  path = _write(tmp_path / "run", "grpo", [5.0, 6.0])
  with open(path / "metrics.csv") as file:
    head, *rows = list(csv.reader(file))
  head[head.index("episode_return_mean")] = "first_visit_correct"
  head[head.index("episodes")] = "first_visits"
  for row in rows:
    if int(row[0]) > 15:
      row[head.index("first_visit_correct")] = ""
      row[head.index("first_visits")] = "0"
  with open(path / "metrics.csv", "w", newline="") as file:
    csv.writer(file).writerows([head, *rows])
  run = recorded.load(path)
  assert run.score == "first_visit_correct"
  np.testing.assert_allclose(run.final, [5.0 * 14.5 / 20, 6.0 * 14.5 / 20])
  (row,) = report.summarize_runs([run])
  assert row["stopped"] == 0 and row["worst"] == run.final.min()


def test_best_runs_are_compared(runs):
  loaded = [recorded.load(path) for path in recorded.find([runs])]
  (row,) = report.compare_runs(loaded)
  assert (row["better"], row["than"]) == ("lco_mse", "ppo")
  # Of 16 pairs 5, 6, 7, 8 wins 9 and a half against 4, 5, 6, 7: with 3 ties.
  wins = sum((x > y) + 0.5 * (x == y) for x in range(5, 9) for y in range(4, 8))
  assert row["probability"] == wins / 16
  assert row["low"] <= row["probability"] <= row["high"]
  assert row["p"] == 2 / 2**4  # All four seeds are better by as much.


def test_only_runs_under_the_same_conditions_are_compared(tmp_path):
  paths = {
    name: _write(tmp_path / name, algorithm, scores, **settings)
    for name, algorithm, scores, settings in (
      ("a", "lco_mse", [5.0, 6.0], {}),
      ("b", "ppo", [3.0, 4.0], {}),
      ("long", "ppo", [9.0, 9.5], {"updates": 40, "total_steps": 4000}),
      ("easier", "lco_mse", [9.0, 9.5], {"action_bins": 3}),
    )
  }
  alike = [recorded.load(paths[name]) for name in ("a", "b")]
  assert report.describe_differences(alike) == []
  assert [row["conditions"] for row in report.compare_runs(alike)] == [""]
  runs = [recorded.load(path) for path in paths.values()]
  (line,) = report.describe_differences(runs)
  assert "length, action_bins" in line
  (row,) = report.compare_runs(runs)
  assert row["conditions"] == "length=2,000, action_bins=None"
  assert (row["better"], row["than"]) == ("lco_mse", "ppo")
  assert row["probability"] == 1
  out = tmp_path / "report"
  out.mkdir()
  report.write(runs, out)
  assert row["conditions"] in (out / "comparisons.md").read_text()
  assert html.escape(line) in (out / "report.html").read_text()
  # Each is the best of its algorithm under its conditions.
  assert (out / "report.html").read_text().count('"best":true') == 4


def test_a_second_report_leaves_nothing_of_the_first(runs, tmp_path):
  out = tmp_path / "report"
  out.mkdir()
  (out / "mine.txt").write_text("kept")
  report.write([recorded.load(runs / name) for name in ("a", "c")], out)
  assert (out / "comparisons.md").exists()
  other = _write(tmp_path / "other", "ppo", [5.0], environment="Other")
  report.write([recorded.load(other)], out)
  names = {path.name for path in out.iterdir()}
  assert "mine.txt" in names and "Other.png" in names
  gone = {"comparisons.md", "comparisons.csv", "Catch---script-.png"}
  assert not gone & names
  assert "no two algorithms" in (out / "report.html").read_text()


def test_lines_of_many_runs_differ():
  drawn = [styles.line_style(index) for index in range(28)]
  assert len({str(style) for style in drawn}) == 28


@pytest.mark.parametrize("vision", _VISIONS)
def test_colours_differ_for_colour_blind_readers(vision):
  """Their distance in CIELAB is at least 15; 2 can just be noticed."""
  seen = [
    _to_lab(_VISIONS[vision] @ _linearize(color)) for color in styles.COLORS
  ]
  for one, other in itertools.combinations(seen, 2):
    assert np.linalg.norm(one - other) > 15


def test_the_report_of_a_script(runs, tmp_path):
  out = tmp_path / "report"
  done = scripts.run("report", f"--out={out}", str(runs))
  assert done.returncode == 0, done.stderr
  names = {path.name for path in out.iterdir()}
  tables = {
    f"{t}.{s}" for t in ("scores", "comparisons") for s in ("csv", "md")
  }
  assert {"report.html", *tables} < names
  assert len([name for name in names if name.endswith(".png")]) == 1
  page = (out / "report.html").read_text()
  assert "http://www.w3.org/2000/svg" in page  # A name, not an address.
  assert len(re.findall("https?://", page)) == 1, "it must not need a network"
  with open(out / "scores.csv") as file:
    assert len(list(csv.DictReader(file))) == 4
  for flags, named in (
    ([str(tmp_path / "nothing")], "nothing"),
    ([], "run directory"),
  ):
    wrong = scripts.run("report", f"--out={out}", *flags)
    assert wrong.returncode == 2 and named in wrong.complaint


_CHECK = """
<script>
const seen = [];
const look = () => seen.push(svg.dataset.drawn);
look();
byId("metric").value = "entropy";
byId("metric").dispatchEvent(new Event("input"));
look();
byId("smoothing").value = 5;
byId("smoothing").dispatchEvent(new Event("input"));
byId("filter").value = "ppo";
byId("filter").dispatchEvent(new Event("input"));
look();
document.querySelector("#legend input").click();
look();
byId("filter").value = "";
byId("which").value = "best";
byId("which").dispatchEvent(new Event("input"));
look();
byId("filter").value = "lco";
byId("filter").dispatchEvent(new Event("input"));
look();
byId("filter").value = "ppo";
byId("filter").dispatchEvent(new Event("input"));
document.querySelector("#legend input").click();
const frame = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {
  clientX: frame.left + frame.width / 2, clientY: frame.top + 50}));
seen.push(byId("tip").textContent);
document.body.dataset.seen = JSON.stringify(seen);
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_page_in_a_browser(runs, tmp_path):
  """The page loads without errors, and its controls work."""
  report.write(
    [recorded.load(path) for path in recorded.find([runs])], tmp_path
  )
  page = (tmp_path / "report.html").read_text()
  (tmp_path / "check.html").write_text(page + _CHECK)
  done = subprocess.run(
    [
      "chromium",
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--enable-logging=stderr",
      "--virtual-time-budget=3000",
      f"--user-data-dir={tmp_path / 'profile'}",
      "--dump-dom",
      f"file://{tmp_path / 'check.html'}#smoothing=2",
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert "CONSOLE" not in done.stderr, done.stderr
  (seen,) = re.findall('data-seen="([^"]*)"', done.stdout)
  seen = json.loads(seen.replace("&quot;", '"').replace("&lt;", "<").replace(
    "&gt;", ">"))  # fmt: skip
  problem = "Catch </script>"
  assert seen[:6] == [
    f"{problem} episode_return_mean 2 4",
    f"{problem} entropy 2 4",
    f"{problem} entropy 5 2",
    f"{problem} entropy 5 1",
    f"{problem} entropy 5 2",  # The best of two algorithms.
    f"{problem} entropy 5 2",  # All of one.
  ]
  assert "0.5 [0.5, 0.5]" in seen[6]
