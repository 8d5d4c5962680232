"""The launch scripts, with stand-ins for the clusters' own commands."""

import os
import subprocess

import pytest

from tests import scripts

_SCRIPTS = scripts.ROOT / "experiments" / "cluster"


def _launch(tmp_path, script, *arguments, status=0):
  """Runs a script; returns its status and the commands that it gave."""
  log = tmp_path / "log"
  for name, result in {"srun": status, "gcloud": 0, "scontrol": 0}.items():
    command = tmp_path / name
    command.write_text(
      '#!/usr/bin/env bash\nprintf "%s|" "${0##*/}" "$@" >> '
      f"{log}\necho >> {log}\nexit {result}\n"
    )
    command.chmod(0o755)
  done = subprocess.run(
    [_SCRIPTS / script, *arguments],
    env=os.environ
    | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert not done.stderr
  return done.returncode, [x.split("|")[:-1] for x in log.read_text().split()]


def test_slurm_begins_then_resumes(tmp_path):
  run = tmp_path / "run"
  flags = ["--config=experiments/configs/control.py:CartPole-v1"]
  expected = ["srun", ".venv/bin/python", "-m", "experiments.train_control"]
  expected += ["--distributed", f"--workdir={run}"]
  assert _launch(tmp_path, "slurm_gpu.sh", run, *flags) == (
    0,
    [expected + flags],
  )
  run.mkdir()
  (run / "config.json").touch()
  (tmp_path / "log").unlink()
  assert _launch(tmp_path, "slurm_gpu.sh", run, *flags) == (
    0,
    [[*expected, "--resume", *flags]],
  )


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_slurm_queues_a_stopped_job_again(tmp_path, status, requeued):
  ended, commands = _launch(
    tmp_path, "slurm_gpu.sh", tmp_path / "run", status=status
  )
  assert ended == status
  assert (["scontrol", "requeue", "12"] in commands) == requeued


def test_the_pod_gets_flags_as_they_are(tmp_path):
  (tmp_path / "log").touch()
  _, _ = _launch(
    tmp_path,
    "tpu_pod.sh",
    "slice",
    "zone-a",
    "run",
    "--config.hidden_sizes=(8,)",
  )
  text = (tmp_path / "log").read_text()
  assert "slice|--zone=zone-a|--worker=all|" in text
  assert r"--workdir=run --config.hidden_sizes=\(8\,\)" in text
