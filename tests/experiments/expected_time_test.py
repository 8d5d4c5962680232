import json
import threading

import pytest

from experiments.common import expected_time, process_pool


def _write(path, steps, total=1000):
  path.mkdir(parents=True, exist_ok=True)
  config = {"environment": "x", "total_steps": total}
  (path / "config.json").write_text(json.dumps(config))
  rows = ["update,env_steps,seed,loss", *(f"1,{at},0,.5" for at in steps)]
  (path / "metrics.csv").write_text("\n".join(rows) + "\n")


def test_the_share_of_a_run_that_is_done(tmp_path):
  assert expected_time.read_share(tmp_path / "none") is None
  _write(tmp_path / "begun", [])
  assert expected_time.read_share(tmp_path / "begun") is None
  _write(tmp_path / "rates" / "rate_0.1", [100, 250])
  assert expected_time.read_share(tmp_path / "rates") == 0.25


@pytest.mark.parametrize(
  ("jobs", "text"), [(1, "30 min"), (2, "18 min"), (3, "18 min")]
)
def test_the_expected_time_is_said_once(
  tmp_path, capsys, monkeypatch, jobs, text
):
  monkeypatch.setattr(expected_time, "_EVERY_SECONDS", 0.0)
  over, clock = threading.Event(), iter(range(0, 10_000, 10))
  monkeypatch.setattr(expected_time.time, "perf_counter", lambda: next(clock))
  looks = iter([None, 0.1, 0.12, 0.2])
  monkeypatch.setattr(
    expected_time,
    "read_share",
    lambda path: next(looks) if path.name == "a" else None,
  )
  work = {tmp_path / "a": 2, tmp_path / "b": 11, tmp_path / "c": 5}
  expected_time.announce(work, jobs, over)
  # .1 in 20 s, so that .8 take 160 s after 40 s: 200 s for a work of 2.
  said = capsys.readouterr().out
  assert said == f"3 runs, {jobs} at a time\nexpected time: about {text}\n"
  over.set()
  expected_time.announce(work, 2, over)
  assert capsys.readouterr().out == "3 runs, 2 at a time\n"


@pytest.mark.parametrize(
  ("seconds", "text"), [(40, "40 s"), (300, "5 min"), (7800, "2 h 10 min")]
)
def test_durations_are_short(seconds, text):
  assert expected_time.format_duration(seconds) == text


@pytest.mark.parametrize(
  ("problem", "settings", "work"),
  [
    ("control.py:CartPole-v1", ("total_steps=1000", "num_epochs=1"), 2_000),
    ("control.py:CartPole-v1", ("total_steps=1000", "num_epochs=64"), 65_000),
    (
      "language.py:reversal",
      ("num_updates=10", "num_prompts=4", "num_samples=2", "num_epochs=4"),
      400,
    ),
  ],
)
def test_work_is_drawing_and_passes(tmp_path, problem, settings, work):
  script = "train_control" if "control" in problem else "train_language"
  config = f"experiments/configs/{problem}"
  run = process_pool.Run(script, config, settings, tmp_path)
  assert run.estimate_work() == work
