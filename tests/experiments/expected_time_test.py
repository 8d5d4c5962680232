import json
import threading

import pytest

from experiments.common import expected_time


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


def test_the_expected_time_is_said_once(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(expected_time, "_EVERY_SECONDS", 0.0)
  over, clock = threading.Event(), iter(range(0, 10_000, 10))
  monkeypatch.setattr(expected_time.time, "perf_counter", lambda: next(clock))
  looks = iter([None, 0.1, 0.12, 0.2])
  monkeypatch.setattr(expected_time, "read_share", lambda _: next(looks))
  expected_time.announce([tmp_path / name for name in "a"], 1, over)
  # .1 in 20 s, so that .8 take 160 s after 40 s.
  said = capsys.readouterr().out
  assert said == "1 runs, 1 at a time\nexpected time: about 3 min\n"
  over.set()
  expected_time.announce([tmp_path] * 7, 2, over)
  assert capsys.readouterr().out == "7 runs, 2 at a time\n"


@pytest.mark.parametrize(
  ("seconds", "text"), [(40, "40 s"), (300, "5 min"), (7800, "2 h 10 min")]
)
def test_durations_are_short(seconds, text):
  assert expected_time.format_duration(seconds) == text
