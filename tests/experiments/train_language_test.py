"""The language script as a user runs it, on models too small to learn much."""

import csv
import json
import shutil

import pytest

from tests import scripts

pytestmark = pytest.mark.xdist_group("train_language")

_CONFIG = "experiments/configs/language.py"
_SMALL = (
  "--config.num_seeds=2",
  "--config.num_updates=6",
  "--config.warm_start_updates=20",
  "--config.warm_start_prompts=16",
  "--config.num_prompts=4",
  "--config.num_samples=4",
  "--config.num_layers=1",
  "--config.width=16",
  "--config.num_heads=2",
  "--config.num_kv_heads=1",
  "--config.mlp_width=16",
  "--config.algorithm=lco_mse",
  "--config.eval_problems=8",
  "--config.eval_samples=8",
  "--config.learning_rate_warmup=2",
  "--config.updates_per_chunk=2",
  "--config.checkpoint_seconds=0",
)


def _script(workdir, *flags, task="parity:6", devices=1):
  return scripts.run(
    "train_language",
    f"--config={_CONFIG}:{task}",
    f"--workdir={workdir}",
    *_SMALL,
    *flags,
    devices=devices,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run with its warm start, and what it said."""
  workdir = tmp_path_factory.mktemp("language") / "run"
  done = _script(workdir, devices=2)
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_a_run_leaves_a_whole_directory(finished):
  workdir, done = finished
  files = {"config.json", "metrics.csv", "tensorboard", "checkpoints", ".lock"}
  assert files <= {path.name for path in (workdir / "warm_start").iterdir()}
  files |= {"summary.json", "learning_curve.png", "warm_start"}
  assert {path.name for path in workdir.iterdir()} == files
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["total_samples"] == 6 * 4 * 4
  for name in ("before", "validation", "evaluation"):
    found = summary[name]
    assert {"greedy", "pass_at_k", "per_seed", "iqm", "ci95"} <= set(found)
    assert len(found["per_seed"]) == 2 and set(found["pass_at_k"]) == {"1", "8"}
    assert found["pass_at_k"]["8"]["mean"] >= found["pass_at_k"]["1"]["mean"]
  assert summary["evaluation"]["split"] == "test"
  for shown in ("greedy, before", "pass@8", "prompt", "learning curve:"):
    assert shown in done.stdout
  with open(workdir / "metrics.csv") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 6 * 2
  assert {
    "reward_mean",
    "reward_std",
    "correct",
    "even_groups",
    "counted_tokens",
    "completion_length_mean",
    "completion_length_max",
    "truncated",
    "entropy",
    "kl_old_new",
    "kl_reference",
    "ratio_q05",
    "ratio_q95",
    "clip_fraction",
    "policy_gradient_norm",
    "attention_gradient_norm",
    "target_residual_before",
    "target_residual_after",
    "target_tail_mass",
    "advantage_rms_error",
    "advantage_correlation",
    "tokens",
  } <= set(rows[0])


def test_a_run_goes_on_as_if_it_had_not_stopped(finished, tmp_path):
  """From the middle, and from a warm start whose run had not begun."""
  workdir, _ = finished
  whole = (workdir / "metrics.csv").read_bytes()
  for number, lose in enumerate(("checkpoints/6", "checkpoints")):
    copy = tmp_path / str(number)
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / lose)
    done = _script(copy, "--resume", devices=2)
    assert done.returncode == 0, done.stderr
    assert (copy / "metrics.csv").read_bytes() == whole
    summaries = [
      json.loads((path / "summary.json").read_text())
      for path in (workdir, copy)
    ]
    for name in ("before", "evaluation"):
      assert summaries[0][name] == summaries[1][name]


def test_a_run_begins_where_another_ended(finished, tmp_path):
  """With another policy as a verifier."""
  warm, workdir = finished[0] / "warm_start", tmp_path / "run"
  done = _script(
    workdir,
    f"--config.init_from={warm}",
    "--config.advantage=verifier",
    f"--config.verifier_from={warm}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  before = json.loads((finished[0] / "summary.json").read_text())["before"]
  assert summary["before"] == before
  assert not (workdir / "warm_start").exists()


@pytest.mark.parametrize(
  ("flags", "named"),
  [
    (["--config.context_length=5"], "context_length"),
    (["--config.num_samples=1"], "num_samples"),
    (["--config.num_minibatches=3"], "num_minibatches"),
    (["--config.num_updates=0"], "num_updates"),
    (["--config.warm_start_updates=-1"], "warm_start_updates"),
    (["--config.temperature=0"], "temperature"),
    (["--config.top_p=2"], "top_p"),
    (["--config.advantage=nope"], "advantage"),
    (["--config.algorithm=dpo", "--config.staleness=1"], "staleness"),
    (["--config.algorithm=rebel", "--config.reward_scale=2"], "reward_scale"),
    (["--config.reference_kl=k4"], "reference_kl"),
    (["--config.length_penalty_tokens=99"], "length_penalty_tokens"),
    (["--config.advantage=verifier"], "verifier_from"),
    (["--config.verifier_from=/nowhere"], "verifier_from"),
    (["--config.warm_start_learning_rate=0"], "warm_start_learning_rate"),
    (["--config.gae_lambda=2"], "gae_lambda"),
    (["--config.learning_rate_warmup=6"], "learning_rate_warmup"),
    (["--config.reference_coefficient=-1"], "reference_coefficient"),
    (["--config.max_weight=2"], "max_weight"),
    (["--config.num_heads=3"], "num_heads"),
    (["--config.dtype=int8"], "dtype"),
    (["--config.task=sorting"], "task"),
    (["--config.init_from=/nowhere"], "/nowhere"),
  ],
  ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, flags, named):
  workdir = tmp_path / "run"
  done = _script(workdir, *flags)
  assert done.returncode == 2 and named in done.complaint
  assert not workdir.exists()


def test_an_unknown_algorithm_is_named_without_other_settings(tmp_path):
  done = scripts.run(
    "train_language",
    f"--config={_CONFIG}:parity",
    "--config.algorithm=nope",
    f"--workdir={tmp_path / 'run'}",
  )
  assert done.returncode == 2 and "algorithm: unknown" in done.complaint


@pytest.mark.parametrize("task", ["nope", "addition:x", "parity:1"])
def test_bad_tasks_are_named(tmp_path, task):
  done = _script(tmp_path / "run", task=task)
  assert done.returncode == 2 and task.partition(":")[0] in done.complaint


def test_a_checkpoint_that_does_not_fit_is_named(finished, tmp_path):
  warm = finished[0] / "warm_start"
  for flags, task, named in (
    ([], "reversal:3", "vocabulary"),
    (["--config.width=32"], "parity:6", "width"),
    (["--config.num_seeds=3"], "parity:6", "seeds"),
    (["--config.tied_embeddings=False"], "parity:6", "tied_embeddings"),
    (
      [f"--config.verifier_from={warm}", "--config.advantage=preference"],
      "parity:6",
      "preferences",
    ),
  ):
    done = _script(
      tmp_path / "run", f"--config.init_from={warm}", *flags, task=task
    )
    assert done.returncode == 2 and named in done.complaint
    assert not (tmp_path / "run").exists()
