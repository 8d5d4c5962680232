"""The comparison of algorithms, as a user runs it."""

import csv
import json

import numpy as np
import pytest

from lco_jax.reporting import stability, statistics
from tests import scripts

_RATES = "--config.policy_learning_rates=(1e-3,1e-2)"
_CONTROL = (
  "--config.tasks=('CartPole-v1',)",
  "--config.variants=('ppo','stopping: algorithm=ppo,max_kl=0.001')",
  "--config.settings=num_seeds=4,total_steps=1024,num_envs=4,num_steps=32,"
  "hidden_sizes=(8,8),eval_episodes=1",
  _RATES,
)
_LANGUAGE = (
  "--config=experiments/configs/comparison.py:language",
  "--config.tasks=('parity',)",
  "--config.variants=('grpo',)",
  "--config.settings=num_seeds=2,num_updates=4,learning_rate_warmup=1,"
  "warm_start_updates=4,warm_start_prompts=4,num_prompts=4,num_samples=4,"
  "num_layers=1,width=8,num_heads=2,num_kv_heads=1,mlp_width=8,"
  "eval_problems=4,eval_samples=1",
  _RATES,
)


def _compare(workdir, *flags):
  own = scripts.overridden(*flags)
  return scripts.run("compare", f"--workdir={workdir}", *own)


def _rows(workdir):
  with open(workdir / "comparison.csv") as file:
    return list(csv.DictReader(file))


def test_control_is_judged_at_the_rate_of_other_seeds(tmp_path):
  workdir = tmp_path / "comparison"
  done = _compare(workdir, *_CONTROL)
  assert done.returncode == 0, done.stderr
  table = (workdir / "comparison.md").read_text()
  assert table.strip() in done.stdout
  assert "| CartPole-v1 | stopping |" in table
  for ending in ("png", "svg"):
    assert (workdir / f"comparison.{ending}").stat().st_size > 5_000
  runs = workdir / "CartPole-v1" / "algorithm=ppo,max_kl=0.001"
  final = np.stack(
    [stability.read_scores(runs / f"rate_{r}", 0.0).final for r in (1e-3, 0.01)]
  )
  first, last = (
    np.argmax(statistics.interquartile_mean(half))
    for half in (final[:, 2:], final[:, :2])
  )
  expected = [*final[first, :2], *final[last, 2:]]
  found = [
    float(row["value"])
    for row in _rows(workdir)
    if (row["algorithm"], row["score"]) == ("stopping", "return")
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # Again: nothing is left to run.
  again = _compare(workdir, *_CONTROL)
  assert again.returncode == 0 and "[1/" not in again.stdout
  stored = runs / "config.json"
  config = json.loads(stored.read_text()) | {"extended_from": [10]}
  stored.write_text(json.dumps(config))
  longer = _compare(workdir, *_CONTROL)
  assert longer.returncode == 2 and "was extended" in longer.complaint
  other = _compare(workdir, *_CONTROL, "--config.settings=num_seeds=3")
  assert other.returncode == 2 and "settings" in other.complaint


def test_language_is_tuned_on_validation_problems(tmp_path):
  workdir = tmp_path / "comparison"
  done = _compare(workdir, *_LANGUAGE)
  assert done.returncode == 0, done.stderr
  runs = workdir / "parity" / "algorithm=grpo"
  found = {
    rate: json.loads((runs / f"rate_{rate}" / "summary.json").read_text())
    for rate in ("0.001", "0.01")
  }
  rate = max(found, key=lambda r: found[r]["validation"]["greedy"])
  table = (workdir / "comparison.md").read_text()
  assert f"| parity | grpo | {rate} |" in table
  assert "| parity | warm start |" in table
  greedy = [
    float(row["value"])
    for row in _rows(workdir)
    if (row["algorithm"], row["score"]) == ("grpo", "greedy")
  ]
  assert greedy == found[rate]["evaluation"]["per_seed"]


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--config.tasks=('CartPole-v1','CartPole-v1')", "tasks"),
    ("--config.variants=('ppo','ppo')", "variants"),
    ("--config.variants=('x: beta',)", "beta"),
    ("--config.variants=('ppo','b: algorithm=ppo')", "variants"),
    ("--config.variants=('ppo','nope')", "nope"),
    ("--config.variants=('ppo','x: algorithm=ppo,total_steps=9')", "length=9"),
    (
      "--config.variants=('ppo','x: algorithm=ppo,total_steps=a')",
      "whole number",
    ),
    ("--config.tasks=('nope',)", "nope"),
    ("--config.against=nope", "nope"),
    ("--config.base=nope.py", "nope.py"),
    ("--config.variants=('ppo','early: max_kl=0.02')", "add algorithm=NAME"),
    ("--config.variants=('ppo','untrained: algorithm=grpo')", "untrained"),
    ("--config.policy_learning_rates=(0.0,)", "policy_learning_rates"),
    ("--jobs=0", "jobs"),
  ],
)
def test_bad_input_is_one_line(tmp_path, flag, named):
  done = _compare(tmp_path / "comparison", *_CONTROL, flag)
  assert done.returncode == 2 and named in done.complaint
  assert not (tmp_path / "comparison").exists()


def test_a_run_that_fails_is_named(tmp_path):
  wrong = "--config.variants=('ppo','x: algorithm=ppo, clip_low=-1.0')"
  done = _compare(tmp_path / "x", *_CONTROL, wrong)
  assert done.returncode == 1 and "clip_low" in done.complaint


def test_an_unknown_setting_of_the_default_config_is_named(tmp_path):
  for script in ("compare", "stability_map"):
    done = scripts.run(
      script, f"--workdir={tmp_path / 'x'}", "--config.num_seds=2"
    )
    assert done.returncode == 2
    assert "num_seds: no such setting" in done.complaint
