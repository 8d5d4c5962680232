"""The launch scripts, with stand-ins for the clusters' own commands."""

import os
import string
import subprocess

import pytest
import yaml

from tests import scripts

_SCRIPTS = scripts.ROOT / "experiments" / "cluster"


def _launch(tmp_path, script, *arguments, status=0, **variables):
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
    | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"}
    | variables,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert not done.stderr or done.returncode == 2
  if not log.exists():
    return done.returncode, done.stderr
  return done.returncode, [x.split("|")[:-1] for x in log.read_text().split()]


def test_slurm_begins_then_resumes(tmp_path):
  run = tmp_path / "run"
  flags = ["--config=experiments/configs/control.py:CartPole-v1"]
  expected = ["srun", ".venv/bin/python", "-m", "experiments.train_llm"]
  expected += ["--distributed", f"--workdir={run}"]
  assert _launch(tmp_path, "slurm_gpu.sh", "train_llm", run, *flags) == (
    0,
    [expected + flags],
  )
  run.mkdir()
  (run / "config.json").touch()
  (tmp_path / "log").unlink()
  assert _launch(tmp_path, "slurm_gpu.sh", "train_llm", run, *flags) == (
    0,
    [[*expected, "--resume", *flags]],
  )


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_slurm_queues_a_stopped_job_again(tmp_path, status, requeued):
  ended, commands = _launch(
    tmp_path, "slurm_gpu.sh", "train_llm", tmp_path / "run", status=status
  )
  assert ended == status
  assert (["scontrol", "requeue", "12"] in commands) == requeued


def test_the_pod_gets_flags_as_they_are(tmp_path):
  (tmp_path / "log").touch()
  _, _ = _launch(
    tmp_path,
    "tpu_pod.sh",
    "train_verifier",
    "slice",
    "zone-a",
    "run",
    "--config.hidden_sizes=(8,)",
  )
  text = (tmp_path / "log").read_text()
  assert "slice|--zone=zone-a|--worker=all|" in text
  assert "-m experiments.train_verifier --distributed" in text
  assert r"--workdir=run --config.hidden_sizes=\(8\,\)" in text


@pytest.mark.parametrize(
  ("variables", "name", "value"),
  [
    ({}, "seed", "2"),
    (
      {"SWEEP": "policy_learning_rate", "SWEEP_VALUES": "1e-5 3e-5 1e-4"},
      "policy_learning_rate",
      "1e-4",
    ),
  ],
)
def test_jobs_of_an_array_have_a_value_and_a_directory(
  tmp_path, variables, name, value
):
  """A job that is queued again goes on in its own."""
  run = tmp_path / "run"
  for resumed in (False, True):
    _, (command,) = _launch(
      tmp_path,
      "slurm_gpu.sh",
      "train_llm",
      run,
      "--config=a.py",
      SLURM_ARRAY_TASK_ID="2",
      **variables,
    )
    own = run / f"{name}_{value}"
    assert f"--workdir={own}" in command
    assert command[-2:] == ["--config=a.py", f"--config.{name}={value}"]
    assert ("--resume" in command) == resumed
    own.mkdir(parents=True, exist_ok=True)
    (own / "config.json").touch()
    (tmp_path / "log").unlink()


@pytest.mark.parametrize("name", ["policy_learning_rate", "seed"])
def test_an_array_longer_than_its_values(tmp_path, name):
  status, said = _launch(
    tmp_path,
    "slurm_gpu.sh",
    "train_llm",
    tmp_path / "run",
    SLURM_ARRAY_TASK_ID="3",
    SWEEP=name,
    SWEEP_VALUES="1 3",
  )
  assert status == 2
  assert said == f"error: SWEEP_VALUES has no value 3 of {name}\n"


@pytest.mark.parametrize("resumed", [False, True])
def test_the_job_set_starts_each_machine(tmp_path, resumed):
  """As envsubst fills it in; the command runs with a stand-in for python."""
  run = tmp_path / "run"
  run.mkdir()
  if resumed:
    (run / "config.json").touch()
  text = string.Template(
    (_SCRIPTS / "jobset.yaml").read_text()
  ).safe_substitute(
    IMAGE="lco:1",
    SCRIPT="train_llm",
    DIR=str(run),
    FLAGS="--config=a.py --mesh=fsdp:16",
    ACCELERATOR="tpu-v5-lite-podslice",
    TOPOLOGY="4x4",
    MACHINES="4",
    VOLUME="runs",
  )
  job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 4
  (container,) = job["template"]["spec"]["containers"]
  (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
  (tmp_path / "python").chmod(0o755)
  done = subprocess.run(
    container["command"],
    env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  )
  resume = ["--resume"] * resumed
  assert done.stdout.split() == [
    "-m",
    "experiments.train_llm",
    "--distributed",
    f"--workdir={run}",
    *resume,
    "--config=a.py",
    "--mesh=fsdp:16",
  ]
