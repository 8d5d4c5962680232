"""Jobs of several processes on this machine, as a cluster would run them."""

import contextlib
import csv
import json
import signal
import time

import numpy as np
import pytest

from lco_jax.runs import distributed
from lco_jax.training import transfers
from tests import scripts

# One worker: every job is several processes of several devices.
pytestmark = [pytest.mark.third_party, pytest.mark.xdist_group("distributed")]

_HEARTBEAT = 5.0
_CARTPOLE = (
  "--config=experiments/configs/control.py:CartPole-v1",
  "--config.num_envs=4",
  "--config.num_steps=16",
  # Every minibatch is a round of messages between the processes.
  "--config.num_epochs=1",
  "--config.num_minibatches=2",
  "--config.hidden_sizes=(8,)",
  "--config.num_seeds=1",
  "--config.total_steps=2560",
  "--config.updates_per_chunk=4",
  "--config.checkpoint_seconds=0",
  "--config.keep_checkpoints=100",
  "--config.eval_episodes=2",
)
_CLIFF = (
  "--config=experiments/configs/control.py:gymnasium:CliffWalking-v1",
  *_CARTPOLE[1:],
  "--config.total_steps=512",
)


@contextlib.contextmanager
def _job(
  workdir,
  *flags,
  processes=2,
  devices=2,
  only=None,
  coordinator=None,
  start_timeout=120,
):
  """Starts the processes of a job, or one of them, and leaves none behind."""
  coordinator = coordinator or scripts.free_address()
  started = []
  for number in range(processes) if only is None else [only]:
    command = [f"--workdir={workdir}", *flags]
    if processes > 1:
      command += [
        "--distributed",
        f"--coordinator={coordinator}",
        f"--num_processes={processes}",
        f"--process_id={number}",
        f"--start_timeout={start_timeout}",
        f"--heartbeat_timeout={_HEARTBEAT}",
      ]
    started.append(scripts.Process("train_control", *command, devices=devices))
  try:
    yield started
  finally:
    for process in started:
      process.end()


def _ends(process, timeout=300):
  """(exit status, the line that says why)."""
  done = process.finish(timeout)
  lines = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert len(lines) <= 1, done.stderr
  return done.returncode, lines[0] if lines else done.stderr[-2000:]


def _runs(workdir, *flags, **options):
  with _job(workdir, *flags, **options) as started:
    for process in started:
      status, line = _ends(process)
      assert status == 0, line


def _wait_for_checkpoint(workdir, started):
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if any((workdir / "checkpoints").glob("[1-9]*/manifest.json")):
      return
    for process in started:
      assert process.poll() is None, process.finish().stderr
    time.sleep(0.01)
  raise AssertionError("no checkpoint")


def _metrics(workdir):
  with open(workdir / "metrics.csv", newline="") as file:
    names, *rows = csv.reader(file)
  return names, np.array([[float(x or "nan") for x in row] for row in rows])


def _assert_same_run(workdir, other, exact):
  if exact:
    assert (workdir / "metrics.csv").read_bytes() == (
      other / "metrics.csv"
    ).read_bytes()
  (names, found), (expected_names, expected) = map(_metrics, (workdir, other))
  assert names == expected_names
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
  summaries = [
    json.loads((path / "summary.json").read_text()) for path in (workdir, other)
  ]
  for name in ("final_return", "evaluation_sampled"):
    # None where no episode ended.
    one, two = (np.array(s[name]["per_seed"], float) for s in summaries)
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
  """One process with four devices, which nothing disturbs."""
  workdir = tmp_path_factory.mktemp("four") / "run"
  _runs(workdir, *_CARTPOLE, processes=1, devices=4)
  return workdir


def test_two_processes_divide_the_environments(tmp_path, four_devices):
  """Sums over processes are added in another order: not bit for bit."""
  _runs(tmp_path / "run", *_CARTPOLE)
  _assert_same_run(tmp_path / "run", four_devices, exact=False)


@pytest.mark.parametrize(
  ("flags", "exact"),
  [((*_CARTPOLE, "--config.num_seeds=4"), True), (_CLIFF, False)],
  ids=["seeds", "host environments"],
)
def test_two_processes_match_one(tmp_path, flags, exact):
  _runs(tmp_path / "two", *flags)
  _runs(tmp_path / "one", *flags, processes=1, devices=4)
  _assert_same_run(tmp_path / "two", tmp_path / "one", exact)


@pytest.mark.parametrize(("victim", "devices"), [(0, None), (1, 1)])
def test_a_killed_process_ends_the_job_which_can_go_on(
  tmp_path, four_devices, victim, devices
):
  """Resumed by one process with a single device."""
  workdir = tmp_path / "run"
  with _job(workdir, *_CARTPOLE) as started:
    _wait_for_checkpoint(workdir, started)
    started[victim].send_signal(signal.SIGKILL)
    status, line = _ends(started[1 - victim], timeout=_HEARTBEAT + 10)
    assert status != 0
    assert f"process {victim} is gone" in line
  if devices:
    _runs(workdir, "--resume", processes=1, devices=devices)
    _assert_same_run(workdir, four_devices, exact=False)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_job(tmp_path, victim):
  workdir = tmp_path / "run"
  with _job(workdir, *_CARTPOLE, "--config.total_steps=640000") as started:
    _wait_for_checkpoint(workdir, started)
    started[victim].send_signal(signal.SIGSTOP)
    status, line = _ends(started[1 - victim], timeout=_HEARTBEAT + 10)
  assert status == 1
  assert f"process {victim} has not answered for 5 s" in line


def test_a_signal_to_one_saves_and_stops_all(tmp_path, four_devices):
  workdir = tmp_path / "run"
  with _job(workdir, *_CARTPOLE) as started:
    _wait_for_checkpoint(workdir, started)
    started[1].send_signal(signal.SIGTERM)
    status, line = _ends(started[0])
    assert status == 75 and "stopped after update" in line
    assert _ends(started[1])[0] == 75
  # The second process does not see the run directory.
  coordinator = scripts.free_address()
  with (
    _job(workdir, *_CARTPOLE, "--resume", only=0, coordinator=coordinator) as a,
    _job(
      tmp_path / "no", *_CARTPOLE, "--resume", only=1, coordinator=coordinator
    ) as b,
  ):
    for process in (*a, *b):
      status, line = _ends(process)
      assert status == 0, line
  assert not (tmp_path / "no").exists()
  _assert_same_run(workdir, four_devices, exact=False)


def test_a_process_that_fails_tells_the_others(tmp_path):
  """Only the first sees that the directory is in use."""
  (tmp_path / "file").touch()
  with _job(tmp_path, *_CARTPOLE) as started:
    endings = [_ends(process) for process in started]
  assert "is already in use" in endings[0][1] and endings[0][0] == 2
  assert "process 0: workdir" in endings[1][1] and endings[1][0] == 2
  assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_an_update_that_is_not_finite_ends_all(tmp_path):
  """Processes replay it together; the first one saves it."""
  workdir = tmp_path / "run"
  overflow = (
    "--config.optimizer=sgd",
    "--config.policy_learning_rate=1e30",
    "--config.policy_max_gradient_norm=0",
  )
  with _job(workdir, *_CARTPOLE, *overflow) as started:
    (status, line), (other_status, _) = map(_ends, started)
  assert status == other_status == 1
  assert "update 1, seed 0: minibatch 1 of 2" in line
  assert (workdir / "fault" / "1" / "manifest.json").exists()


@pytest.mark.parametrize(
  ("only", "line"),
  [
    (0, "process 1 did not connect to 127.0.0.1:"),
    (1, "process 0 cannot be reached at 127.0.0.1:"),
  ],
)
def test_who_never_starts_is_named(tmp_path, only, line):
  workdir = tmp_path / "run"
  started = time.monotonic()
  with _job(workdir, *_CARTPOLE, only=only, start_timeout=3) as (process,):
    status, found = _ends(process, timeout=60)
  assert status == 1 and line in found, found
  assert time.monotonic() - started < 3 + 30  # Python starts in some of that.
  assert not workdir.exists()


def test_other_settings_are_noticed(tmp_path):
  workdir, same = tmp_path / "run", {"coordinator": scripts.free_address()}
  other = "--config.beta=2"
  with (
    _job(workdir, *_CARTPOLE, only=0, **same) as (first,),
    _job(workdir, *_CARTPOLE, other, only=1, **same) as (second,),
  ):
    for process in (first, second):
      status, line = _ends(process)
      assert status == 1
      assert "process 1 was started with other settings" in line
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--distributed"], "no cluster was detected"),
    (
      ["--distributed", "--coordinator=127.0.0.1:1"],
      "--num_processes must be given",
    ),
  ],
)
def test_flags_that_do_not_describe_a_job(tmp_path, flags, line):
  with _job(tmp_path / "run", *_CARTPOLE, *flags, processes=1) as (process,):
    status, found = _ends(process)
  assert status == 2 and line in found
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("job", "name"),
  [
    (("nowhere", 2, 0), "coordinator"),
    (("127.0.0.1:99999", 2, 0), "coordinator"),
    (("127.0.0.1:80", 0, 0), "num_processes"),
    (("127.0.0.1:80", 2, 2), "process_id"),
    (("127.0.0.1:80", 2, -1), "process_id"),
  ],
)
def test_a_job_that_cannot_be(job, name):
  with pytest.raises(ValueError, match=name):
    distributed.Job(*job)


def test_one_process_needs_no_agreement():
  tree = {"x": np.float32([-0.0, np.nan])}
  assert transfers.from_first_process(tree) is tree
  assert transfers.any_process(True, False) == (True, False)
