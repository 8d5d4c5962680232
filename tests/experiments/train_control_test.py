"""The script as a user runs it: in a process of its own."""

import json

import numpy as np
import pytest

from lco_jax.runs import run_directory
from tests import scripts

_CONFIG = "experiments/configs/control.py"


def _script(workdir, *flags, environment="CartPole-v1", devices=1):
  return scripts.run(
    "train_control",
    f"--config={_CONFIG}:{environment}",
    f"--workdir={workdir}",
    *flags,
    devices=devices,
  )


def test_a_small_run_leaves_a_whole_directory(tmp_path):
  workdir = tmp_path / "run"
  done = _script(
    workdir,
    "--config.algorithm=ppo",
    "--config.num_seeds=2",
    "--config.total_steps=1000",
    "--config.num_envs=4",
    "--config.num_steps=32",
    "--config.eval_episodes=5",
    "--config.hidden_sizes=(8,)",
    "--config.clip_high=0.3",
    "--config.optimizer_options=b1=0.8,eps=1e-5",
    "--config.policy_max_gradient_norm=0",
    "--profile",
    devices=2,
  )
  assert done.returncode == 0, done.stderr
  assert {path.name for path in workdir.iterdir()} == {
    ".lock",
    "checkpoints",
    "config.json",
    "metrics.csv",
    "profile",
    "tensorboard",
    "summary.json",
    "learning_curve.png",
  }
  assert any((workdir / "profile").rglob("*.xplane.pb"))
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["env"] == "CartPole-v1" and summary["algorithm"] == "ppo"
  assert summary["total_steps"] == 7 * 128
  for name in ("final_return", "evaluation", "evaluation_sampled"):
    assert len(summary[name]["per_seed"]) == 2
    assert {"mean", "iqm", "ci95"} <= set(summary[name])
  assert summary["evaluation"]["backend"] == "gymnasium"
  assert summary["evaluation"]["episodes"] == 5
  for name in ("compile_seconds", "train_seconds", "steps_per_second"):
    assert summary[name] > 0
  config = json.loads((workdir / "config.json").read_text())
  assert config["clip_high"] == 0.3
  assert config["policy_learning_rate"] is not None
  rows = (workdir / "metrics.csv").read_text().splitlines()
  assert len(rows) == 1 + 7 * 2 and "clip_fraction" in rows[0]
  assert f"learning curve: {workdir}" in done.stdout
  again = _script(workdir)
  assert again.returncode == 2 and "already in use" in again.stderr


def test_rates_side_by_side_leave_a_run_each(tmp_path):
  """Each reads like a run at its rate alone; one that overflows is empty."""
  workdir = tmp_path / "run"
  done = _script(
    workdir,
    "--config.policy_learning_rates=(1e-3,1e30)",
    "--config.num_seeds=2",
    "--config.total_steps=512",
    "--config.num_envs=4",
    "--config.num_steps=32",
    "--config.eval_episodes=2",
    "--config.hidden_sizes=(8,)",
  )
  assert done.returncode == 0, done.stderr
  for rate in ("0.001", "1e+30"):
    cell = workdir / f"rate_{rate}"
    config = json.loads((cell / "config.json").read_text())
    assert config["policy_learning_rate"] == float(rate)
    assert config["policy_learning_rates"] == []
    summary = json.loads((cell / "summary.json").read_text())
    assert summary["learning_rate"] == float(rate)
    assert len(summary["evaluation"]["per_seed"]) == 2
    logged = run_directory.read_metrics(cell, ["policy_loss"])["policy_loss"]
    assert logged.shape == (4, 2)
    assert np.isfinite(logged).all() == (rate == "0.001")
  part = scripts.run("train_control", "--resume", f"--workdir={cell}")
  assert part.returncode == 2 and f"part of the run in {workdir}" in (
    part.complaint
  )


@pytest.mark.parametrize(
  ("flags", "named"),
  [
    (["--config.policy_learning_rates=(0.0,)"], "policy_learning_rates"),
    (["--config.policy_learning_rates=(0.1,0.1)"], "policy_learning_rates"),
    (["--config.algorithm=nope"], "algorithm"),
    (["--config.nope=1"], "nope"),
    (["--config.beta=0"], "beta"),
    (["--config.beta=inf"], "beta"),
    (["--config.policy_learning_rate=-1"], "policy_learning_rate"),
    (["--config.value_learning_rate=nan"], "value_learning_rate"),
    (["--config.num_seeds=0"], "num_seeds"),
    (["--config.seed=-1"], "seed"),
    (["--config.updates_per_chunk=0"], "updates_per_chunk"),
    (["--config.keep_checkpoints=0"], "keep_checkpoints"),
    (["--config.checkpoint_seconds=nan"], "checkpoint_seconds"),
    (["--config.num_minibatches=5"], "num_minibatches"),
    (["--config.num_envs=3", "--config.num_seeds=3"], "num_envs"),
    (["--config.total_steps=10"], "total_steps"),
    (["--config.num_envs=x"], "num_envs"),
    (["--config.clip_low=0.1"], "clip_low"),
    (["--config.value_clip=inf"], "value_clip"),
    (["--config.algorithm=ppo", "--config.all_actions=True"], "all_actions"),
    (["--config.beta_rule=variance"], "beta_rule"),
    (["--config.beta_rule=nope"], "beta_rule"),
    (["--config.action_bins=5"], "action_bins"),
    (["--config.stale_ratio=0.5"], "stale_ratio"),
    (["--config.staleness=-1"], "staleness"),
    (["--config.value_max_gradient_norm=-1"], "value_max_gradient_norm"),
    (["--config.hidden_sizes=(0.5,)"], "hidden_sizes"),
    (["--config.environment=Acrobot-v1"], "environment"),
    (["--config.optimizer_options=b1"], "optimizer_options"),
    (["--config.optimizer_options=nope=1"], "optimizer"),
    (["--config.optimizer=nope"], "optimizer"),
    (["--config.wandb_project=x"], "wandb_project"),
    (["stray"], "stray"),
  ],
  ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, flags, named):
  workdir = tmp_path / "run"
  done = _script(workdir, *flags, devices=2)
  assert done.returncode == 2
  assert named in done.complaint
  assert not workdir.exists()


@pytest.mark.parametrize(
  "name",
  [
    "Nope-v0",
    "os:system",
    "gymnasium:os:system",
    "gymnasium:Nope-v0",
    "gymnasium:Blackjack-v1",  # It observes a tuple.
  ],
)
def test_bad_environments_are_named(tmp_path, name):
  done = _script(tmp_path / "run", environment=name)
  assert done.returncode == 2 and name in done.complaint


@pytest.mark.parametrize("workdir", ["/proc/nope", "/dev/null"])
def test_an_impossible_workdir_is_named(workdir):
  done = _script(workdir)
  assert done.returncode == 2 and workdir in done.complaint
