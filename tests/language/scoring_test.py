"""Scores from processes: in order, in time, or worth nothing."""

import functools
import operator
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from lco_jax.language import scoring
from lco_jax.tasks import rewards


def _scorer(score, seconds=30.0, num_workers=2):
  """A scorer of a task that is scored by some function of two arguments."""
  task = types.SimpleNamespace(score=score, load=dict)
  return scoring.Scorer(task, num_workers, seconds)


def test_scores_come_in_order():
  with _scorer(operator.truediv) as scorer:
    futures = [scorer.submit(n, 10) for n in range(10)]
    found = scorer.collect(futures)
  assert [score.value for score in found] == [n / 10 for n in range(10)]
  assert not any(score.failed for score in found)


def test_a_verifier_that_fails_is_worth_nothing():
  with _scorer(operator.truediv) as scorer:
    futures = [scorer.submit(1, by) for by in (1, 0, 1)]
    found = scorer.collect(futures)
  assert [score.value for score in found] == [1.0, 0.0, 1.0]
  assert [score.failed for score in found] == [False, True, False]


def test_a_verifier_that_takes_too_long_is_worth_nothing():
  """It is ended, and others are scored after it."""
  with _scorer(subprocess.call, seconds=1.0) as scorer:
    began = time.monotonic()
    late = [scorer.submit(["sleep", "300"], -1) for _ in range(2)]
    soon = scorer.submit(["false"], -1)
    assert [score.failed for score in scorer.collect(late)] == [True, True]
    (score,) = scorer.collect([soon])
    assert score == scoring.Score((1.0,), failed=False)
    assert time.monotonic() - began < 60


def test_loading_takes_no_completions_time():
  load = functools.partial(time.sleep, 2.0)
  task = types.SimpleNamespace(score=operator.truediv, load=load)
  with scoring.Scorer(task, 1, seconds=1.0) as scorer:
    (score,) = scorer.collect([scorer.submit(1, 2)])
  assert score == scoring.Score((0.5,), failed=False)


def test_a_verifier_that_kills_its_process():
  with _scorer(subprocess.call) as scorer:
    # The shell's parent is the process that scores.
    killed = scorer.submit(["sh", "-c", "kill -9 $PPID"], -1)
    (score,) = scorer.collect([killed])
    assert score == scoring.Score((0.0,), failed=True)
    (score,) = scorer.collect([scorer.submit(["false"], -1)])
    assert score.value == 1.0


def _process(*_):
  return os.getpid()


def test_a_process_that_ends_while_it_waits_is_replaced():
  with _scorer(_process) as scorer:
    before = {score.value for score in _scores(scorer, 8)}
    for process in before:
      os.kill(int(process), signal.SIGKILL)
    for _ in range(2):  # At once, and when it has been noticed.
      after = _scores(scorer, 8)
      assert not any(score.failed for score in after)
      assert not before & {score.value for score in after}
      time.sleep(1)


def test_what_no_process_was_handed_yet_is_scored_by_the_next():
  """More waits than a pipe holds when the only one ends."""
  with _scorer(_process, num_workers=1) as scorer:
    (before,) = {score.value for score in _scores(scorer, 8)}
    os.kill(int(before), signal.SIGKILL)
    waiting = [scorer.submit("x" * 1000, n) for n in range(200)]
    after = scorer.collect(waiting)
  assert not any(score.failed for score in after)
  assert before not in {score.value for score in after}


def test_processes_that_never_begin():
  """One line for a person, rather than a score."""
  load = functools.partial(operator.truediv, 1, 0)
  task = types.SimpleNamespace(score=_process, load=load)
  with (
    scoring.Scorer(task, 1, seconds=30.0) as scorer,
    pytest.raises(scoring.ScoringError, match="end before they score any"),
  ):
    _scores(scorer, 2)


def _scores(scorer, number):
  return scorer.collect([scorer.submit(n, 1) for n in range(number)])


_A_JOB = """
import operator, os, signal, types
from lco_jax.language import scoring
from lco_jax.tasks import rewards

def main():
  signal.signal(signal.SIGTERM, lambda *_: print("asked to stop", flush=True))
  task = types.SimpleNamespace(score=operator.truediv, load=dict)
  with scoring.Scorer(task, 2, 30.0) as scorer:
    for _ in range(2):
      found = scorer.collect([scorer.submit(1, 2) for _ in range(4)])
      right = [tuple(score) for score in found] == [((0.5,), False)] * 4
      print(right, flush=True)
      os.killpg(0, signal.SIGTERM)

if __name__ == "__main__":
  main()
"""


def test_sigterm_to_a_whole_job_leaves_scoring_to_its_end(tmp_path):
  """As schedulers send it; what it asks is for the script to do."""
  script = tmp_path / "job.py"
  script.write_text(_A_JOB)
  done = subprocess.run(
    [sys.executable, script],
    start_new_session=True,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.stdout.split("\n")[:-1] == ["True", "asked to stop"] * 2, done
  assert done.returncode == 0


def test_a_built_in_reward_that_takes_too_long_is_worth_nothing(tmp_path):
  """A user's ends the run in the same place."""
  slow = r"^(a+)+$"  # Exponentially long on what it does not match.
  problem = {"row": {"pattern": slow}, "place": "rows.jsonl, line 3"}
  text = "a" * 40 + "b"
  with scoring.Scorer(
    rewards.Grader(rewards.parse("regex,json")), 1, seconds=1.0
  ) as scorer:
    (score,) = scorer.collect([scorer.submit(problem, text)])
  assert score == scoring.Score((0.0, 0.0), failed=True)
  (tmp_path / "own.py").write_text("def zero(c, r): return 0")
  grader = rewards.Grader(rewards.parse(f"regex,{tmp_path / 'own.py'}:zero"))
  with scoring.Scorer(grader, 1, seconds=1.0) as scorer:
    waiting = [scorer.submit(problem, text)]
    with pytest.raises(scoring.ScoringError, match=r"line 3: no value after 1"):
      scorer.collect(waiting)


@pytest.mark.parametrize("how", ["os._exit(3)", "sys.exit(0)"])
def test_a_reward_that_ends_its_process_is_named(tmp_path, how):
  (tmp_path / "own.py").write_text(f"import os, sys\ndef f(c, r): {how}")
  grader = rewards.Grader(rewards.parse(f"{tmp_path / 'own.py'}:f"))
  problem = {"row": {}, "place": "rows.jsonl, line 3"}
  with scoring.Scorer(grader, 1, seconds=30.0) as scorer:
    waiting = [scorer.submit(problem, "")]
    with pytest.raises(scoring.ScoringError, match="f: rows.jsonl, line 3: "):
      scorer.collect(waiting)
