"""A pretrained run on rows and rewards of one's own, as a user runs it."""

import csv
import json
import signal
import time

import jax
import numpy as np
import pytest

import lco_jax
from tests import scripts, tiny_model

pytestmark = [
  pytest.mark.third_party,  # optax.
  pytest.mark.xdist_group("train_data"),
]

_REWARDS = """
import time

def near(completion, row):
  if str(row["answer"]) in completion:
    return 1.0
  return 0.1 * len(completion) % 1  # So that a random model gets something.

def brief(completion, row):
  return 1.0 / (1 + len(completion)) + 0 * row["level"]

def slow(completion, row):
  time.sleep(0.05)
  return 0.0

def raises(completion, row):
  return 1 / 0

def hangs(completion, row):
  time.sleep(600)

def text(completion, row):
  return "good"
"""
_SMALL = (
  "--config=experiments/configs/llm.py:data",
  "--config.num_updates=3",
  "--config.num_prompts=4",
  "--config.num_samples=4",
  "--config.completion_length=5",
  "--config.eval_problems=6",
  "--config.eval_samples=2",
  "--config.eval_batch=6",
  "--config.policy_learning_rate=0.01",
  "--config.checkpoint_seconds=0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model, 60 rows and some rewards."""
  path = tmp_path_factory.mktemp("data")
  tiny_model.write_gguf(path / "tiny.gguf", tiny_model.weights())
  rows = [
    {"question": f"{n // 10} + {n % 10} =", "answer": n // 10 + n % 10}
    | {"level": n}
    for n in range(60)
  ]
  (path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  (path / "own.py").write_text(_REWARDS)
  return path


def _flags(folder, *flags):
  rewards = f"{folder}/own.py:near,{folder}/own.py:brief*0"
  return scripts.overridden(
    *_SMALL,
    f"--config.model={folder / 'tiny.gguf'}",
    f"--config.data={folder / 'train.jsonl'}",
    f"--config.rewards={rewards}",
    *flags,
  )


@pytest.fixture(scope="module")
def finished(folder):
  workdir = folder / "run"
  done = scripts.run(
    "train_llm", *_flags(folder, f"--workdir={workdir}"), timeout=300
  )
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_each_reward_is_logged_by_its_name(finished):
  workdir, done = finished
  assert "20 rows to train on, 20 to validate, 20 to test" in done.stdout
  with open(workdir / "metrics.csv") as file:
    found = list(csv.DictReader(file))
  assert len(found) == 3
  for row in found:
    # The second has weight 0.
    assert row["reward_mean"] == row["reward_near_mean"]
    assert row["reward_std"] == row["reward_near_std"]
    assert float(row["correct"]) < float(row["reward_near_mean"]) < 1
    assert 0 < float(row["reward_brief_mean"]) <= 1
    assert float(row["reward_brief_std"]) > 0
  summary = json.loads((workdir / "summary.json").read_text())
  for name in ("before", "validation", "evaluation"):
    means = summary[name]["sampled_rewards"]
    assert summary[name]["sampled"]["mean"] < means["near"] < 1
    assert 0 < means["brief"] <= 1
    assert summary[name]["problems"] == summary[name]["distinct_problems"] == 6


def test_no_row_is_trained_and_tested_on(finished, folder):
  workdir, _ = finished
  trained = {
    json.loads(line)["question"]
    for line in (workdir / "completions.jsonl").read_text().splitlines()
  }
  policy = lco_jax.load_policy(workdir)
  task = policy.asking.task
  splits = {
    split: {task.problem(split, n)["question"] for n in range(20)}
    for split in ("train", "validation", "test")
  }
  assert trained and trained <= splits["train"]
  assert len(set.union(*splits.values())) == 60


def test_a_killed_run_goes_on_bit_for_bit(finished, folder, tmp_path):
  rewards = f"{folder}/own.py:near,{folder}/own.py:brief*0"
  alone = tmp_path / "alone"
  flags = _flags(folder, f"--config.rewards={rewards},{folder}/own.py:slow*0")
  ran = scripts.run("train_llm", *flags, f"--workdir={alone}")
  assert ran.returncode == 0, ran.stderr
  workdir = tmp_path / "killed"
  process = scripts.Process("train_llm", *flags, f"--workdir={workdir}")
  deadline = time.monotonic() + 240
  while not list(workdir.glob("checkpoints/[12]")):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  assert process.finish().returncode == -signal.SIGKILL
  resumed = scripts.run("train_llm", "--resume", f"--workdir={workdir}")
  assert resumed.returncode == 0, resumed.stderr
  for name in ("metrics.csv", "completions.jsonl"):
    assert (workdir / name).read_text() == (alone / name).read_text()


def test_evaluations_midway_change_nothing(finished, folder, tmp_path):
  workdir, _ = finished
  flags = _flags(
    folder, "--config.eval_every=1", f"--workdir={tmp_path / 'run'}"
  )
  done = scripts.run("train_llm", *flags)
  assert done.returncode == 0, done.stderr
  for name in ("metrics.csv", "completions.jsonl"):
    assert (tmp_path / "run" / name).read_text() == (workdir / name).read_text()
  with open(tmp_path / "run" / "evaluations.csv") as file:
    rows = list(csv.DictReader(file))
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  scores = [float(row["score"]) for row in rows]
  assert len(set(scores)) == 3
  found = summary["validation"]
  assert scores[-1] == found["sampled_rewards"]["near"]
  assert float(rows[-1]["sampled"]) == found["sampled"]["mean"]
  assert float(rows[-1]["greedy"]) == found["greedy"]["mean"]
  (best,) = (tmp_path / "run" / "best").iterdir()
  assert int(best.name) == 1 + int(np.argmax(scores))
  a, b, c = (
    lco_jax.load_policy(path, best=is_best).pretrained.params
    for path, is_best in (
      (workdir, False),
      (tmp_path / "run", False),
      (tmp_path / "run", True),
    )
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)
  same = all(jax.tree.leaves(jax.tree.map(np.array_equal, b, c)))
  assert same == (best.name == "3")


@pytest.mark.parametrize(
  ("name", "line"),
  [
    ("raises", "ZeroDivisionError: division by zero"),
    ("hangs", "no value after 1 s (scoring_seconds)"),
    ("text", "want a finite number, got 'good'"),
  ],
)
def test_a_reward_at_fault_ends_the_run(folder, tmp_path, name, line):
  done = scripts.run(
    "train_llm",
    *_flags(
      folder,
      f"--config.rewards=numeric,{folder}/own.py:{name}",
      "--config.scoring_seconds=1",
      f"--workdir={tmp_path / 'run'}",
    ),
  )
  assert done.returncode == 1
  assert f"{name}: {folder / 'train.jsonl'}, line " in done.complaint
  assert done.complaint.endswith(line)


@pytest.mark.parametrize("name", ["train.jsonl", "own.py"])
def test_a_file_that_changed_is_refused(finished, folder, name):
  workdir, _ = finished
  before = (folder / name).read_text()
  (folder / name).write_text(before + "\n")
  try:
    done = scripts.run("train_llm", "--resume", f"--workdir={workdir}")
  finally:
    (folder / name).write_text(before)
  assert done.returncode == 2
  assert f"{folder / name} has changed since the run began" in done.complaint


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--config.data=/nowhere.jsonl"], "/nowhere.jsonl"),
    (["--config.rewards=nothing"], "rewards: unknown 'nothing'"),
    (["--config.rewards=/nowhere.py:own"], "no file /nowhere.py"),
    (["--config.question_field=ask"], "line 1: no text in the column 'ask'"),
    (["--config.reward_combination=product"], "reward_combination"),
    (["--config.eval_every=-1"], "eval_every"),
    (
      ["--config.eval_every=3", "--config.updates_per_chunk=2"],
      "eval_every 3 must be a multiple of updates_per_chunk 2",
    ),
  ],
)
def test_wrong_settings_write_nothing(folder, tmp_path, flags, line):
  done = scripts.run(
    "train_llm", *_flags(folder, *flags, f"--workdir={tmp_path / 'run'}")
  )
  assert done.returncode == 2
  assert line in done.complaint
  assert not (tmp_path / "run").exists()


def test_what_was_trained_answers_on_the_terminal(finished, folder, tmp_path):
  workdir, _ = finished
  policy = lco_jax.load_policy(workdir)
  (tmp_path / "in.jsonl").write_text('{"text": "1 + 2 ="}\n')
  done = scripts.run(
    "generate",
    f"--model={workdir}",
    "--chat",
    "--max_new_tokens=5",
    f"--prompts={tmp_path / 'in.jsonl'}",
    f"--out={tmp_path / 'out.jsonl'}",
  )
  assert done.returncode == 0, done.stderr
  row = json.loads((tmp_path / "out.jsonl").read_text())
  assert row["greedy_text"] == policy.complete(["1 + 2 ="])[0]
