"""Runs that are killed, stopped, damaged and resumed, as a user meets them."""

import fcntl
import json
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import scripts

# One worker: the tests share a run.
pytestmark = [pytest.mark.third_party, pytest.mark.xdist_group("resume")]

_NEW = (
  "--config=experiments/configs/control.py:CartPole-v1",
  "--config.num_seeds=2",
  "--config.num_envs=2",
  "--config.num_steps=32",
  "--config.hidden_sizes=(8,)",
  "--config.total_steps=32000",
  "--config.updates_per_chunk=20",
  "--config.checkpoint_seconds=0",
  "--config.eval_episodes=2",
)


def _start(workdir, *flags, module="train_control", limit_kb=None):
  return scripts.Process(
    module,
    f"--workdir={workdir}",
    *flags,
    file_limit=limit_kb and limit_kb * 1024,
  )


def _finish(process):
  """(exit status, standard output, last line of standard error)."""
  done = process.finish()
  return (
    done.returncode,
    done.stdout,
    done.stderr.strip().rpartition("\n")[2],
  )


def _wait_for_checkpoint(workdir, process):
  """Waits until the run has saved more than its beginning."""
  deadline = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < deadline:
    steps = (workdir / "checkpoints").glob("[1-9]*/manifest.json")
    if any(True for _ in steps):
      return
    time.sleep(0.01)
  raise AssertionError(f"no checkpoint; status {process.poll()}")


def _arrays(directory):
  """What a checkpoint holds: {path of the leaf: bytes}."""
  manifest = json.loads((directory / "manifest.json").read_text())
  like = {}
  for name, description in manifest["leaves"].items():
    dtype, _, shape = description.partition("[")
    like[name] = np.zeros(json.loads(f"[{shape}"), dtype)
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    arrays = checkpointer.restore(
      directory / "arrays", args=ocp.args.StandardRestore(like)
    )
  return {name: array.tobytes() for name, array in arrays.items()}


def _outcome(workdir):
  """All that two runs of one configuration must agree on."""
  newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
  directory = workdir / "checkpoints" / str(newest)
  summary = json.loads((workdir / "summary.json").read_text())
  return {
    "metrics": (workdir / "metrics.csv").read_bytes(),
    "update": newest,
    "arrays": _arrays(directory),
    "evaluation": (summary["evaluation"], summary["evaluation_sampled"]),
    "final_return": summary["final_return"],
  }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  status, out, _ = _finish(_start(workdir, *_NEW))
  assert status == 0 and "learning curve" in out
  return workdir


@pytest.mark.parametrize(
  ("number", "status"),
  [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 75)],
)
def test_a_run_that_is_ended_and_resumed_is_the_same(
  tmp_path, whole, number, status
):
  workdir = tmp_path / "run"
  process = _start(workdir, *_NEW)
  _wait_for_checkpoint(workdir, process)
  process.send_signal(number)
  ended, _, line = _finish(process)
  assert ended == status
  if status == 75:  # No error: it was asked to.
    assert line.startswith("stopped after update") and "--resume" in line
  status, _, line = _finish(_start(workdir, "--resume"))
  assert status == 0, line
  expected, found = _outcome(whole), _outcome(workdir)
  for name in expected:
    assert found[name] == expected[name], name


def _refused(workdir, *flags, status=2, **options):
  """The one line with which a command ends, below its progress bar."""
  done = _start(workdir, *flags, **options).finish()
  lines = [
    line
    for line in done.stderr.strip().splitlines()
    if not line.startswith("2 learners:")
  ]
  assert done.returncode == status, done.stderr
  assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
  return lines[0]


def test_what_cannot_be_resumed_is_named(tmp_path, whole):
  before = _outcome(whole)
  assert "no config.json" in _refused(tmp_path, "--resume")
  assert not any(tmp_path.iterdir())
  assert "--config must be given" in _refused(tmp_path / "new")
  assert "--resume" in _refused(tmp_path / "new", "--resume_update=3")
  line = _refused(whole, *_NEW, "--config.algorithm=ppo", "--resume")
  assert line.startswith("error: algorithm: the run in"), line
  other = "--config=experiments/configs/control.py:Acrobot-v1"
  assert "environment" in _refused(whole, other, *_NEW[1:], "--resume")
  assert "no checkpoint 7;" in _refused(whole, "--resume", "--resume_update=7")
  older = tmp_path / "older"
  older.mkdir()
  settings = json.loads((whole / "config.json").read_text())
  del settings["max_kl"]
  (older / "config.json").write_text(json.dumps(settings))
  assert "no max_kl; another version wrote" in _refused(older, "--resume")
  assert _outcome(whole) == before


def test_one_process_at_a_time(whole):
  with open(whole / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert "in use by another process" in _refused(whole, "--resume")


def test_damage_is_named_and_older_checkpoints_stay_usable(tmp_path, whole):
  """The newest checkpoint is damaged: the run goes on from the one before."""
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  newest = workdir / "checkpoints" / str(steps[-1])
  data = max(newest.rglob("d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  line = _refused(workdir, "--resume")
  assert "is damaged" in line and f"older ones: {steps[0]}" in line
  status, _, line = _finish(
    _start(workdir, "--resume", f"--resume_update={steps[-2]}")
  )
  assert status == 0, line
  assert _outcome(workdir) == _outcome(whole)


def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, whole):
  """Files may not grow over 60 kB: the metrics do."""
  workdir = tmp_path / "run"
  line = _refused(workdir, *_NEW, status=1, limit_kb=60)
  assert f"{workdir}" in line
  assert any((workdir / "checkpoints").glob("*/manifest.json"))
  status, _, line = _finish(_start(workdir, "--resume"))
  assert status == 0, line
  assert _outcome(workdir) == _outcome(whole)


def test_an_update_that_is_not_finite_can_be_replayed(tmp_path):
  """A learning rate that overflows; the replay shows the same fault."""
  workdir = tmp_path / "run"
  process = _start(
    workdir,
    *_NEW,
    "--config.optimizer=sgd",
    "--config.policy_learning_rate=1e30",
    "--config.policy_max_gradient_norm=0",
  )
  status, _, line = _finish(process)
  assert status == 1 and "update 1, seed 0: minibatch 1 of 16" in line
  assert "last checkpoint: 0" in line and "experiments.replay" in line
  status, out, line = _finish(_start(workdir, module="replay"))
  assert status == 0, line
  assert "replayed: minibatch 1 of 16: policy_update_norm not finite" in out
  shutil.rmtree(workdir / "fault")
  assert "no checkpoint" in _refused(workdir, module="replay")


def test_a_finished_run_can_be_extended(tmp_path, whole):
  workdir = tmp_path / "run"
  shutil.copytree(whole, workdir)
  before = (whole / "metrics.csv").read_bytes()
  for flags, named in (
    (["--extend_to=48000"], "--resume"),
    (["--resume", "--extend_to=32"], "32000 already"),
    (["--resume", "--extend_to=48000", *_NEW], "leave out --config"),
  ):
    assert named in _refused(workdir, *flags)
  longer = ["--resume", "--extend_to=48000"]
  process = _start(workdir, *longer)
  status, out, line = _finish(process)
  assert status == 0, line
  # Linear decay: a third of the way is left.
  assert "32,000 extended to 48,000" in out and "jumps to 0.33" in out
  after = (workdir / "metrics.csv").read_bytes()
  assert after.startswith(before) and after.count(b"\n") == 2 * 750 + 1
  settings = json.loads((workdir / "config.json").read_text())
  assert settings["total_steps"] == 48000
  assert settings["extended_from"] == [32000]
  kept = (workdir / "summary_32000.json").read_bytes()
  assert kept == (whole / "summary.json").read_bytes()
  found = _outcome(workdir)
  assert found["update"] == 750
  # The same command again, as a scheduler may give it, changes nothing.
  status, out, line = _finish(_start(workdir, *longer))
  assert status == 0 and "extended" not in out
  assert _outcome(workdir) == found
  (workdir / "summary.json").unlink()
  assert "not finished" in _refused(workdir, "--resume", "--extend_to=64000")
