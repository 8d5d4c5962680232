"""A pretrained run on rows and rewards of one's own, as a user runs it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import lco_jax
from lco_jax.runs import run_directory
from lco_jax.tasks import rewards, rows
from tests import compiler, scripts, tiny_model

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

def odd(completion, row):
  return float(sum(map(ord, completion)) % 2)

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
  task = rows.make_row_task(
    "data",
    {"train": rows.read(str(folder / "train.jsonl"))},
    rewards.parse("numeric"),
  )
  splits = {
    split: {task.problem(split, n)["question"] for n in range(20)}
    for split in ("train", "validation", "test")
  }
  assert trained and trained <= splits["train"]
  assert len(set.union(*splits.values())) == 60


def test_a_killed_run_goes_on_bit_for_bit(finished, folder, tmp_path):
  rewards = f"{folder}/own.py:near,{folder}/own.py:brief*0"
  alone = tmp_path / "alone"
  flags = _flags(
    folder,
    f"--config.rewards={rewards},{folder}/own.py:slow*0",
    "--config.eval_every=1",
  )
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
  for name in ("metrics.csv", "completions.jsonl", "evaluations.csv"):
    assert (workdir / name).read_text() == (alone / name).read_text()
  assert [path.name for path in (workdir / "best").iterdir()] == [
    path.name for path in (alone / "best").iterdir()
  ]


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


def test_a_file_that_changed_is_not_run(finished, folder, tmp_path):
  workdir, _ = finished
  before = (folder / "own.py").read_text()
  (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
  try:
    done = scripts.run("train_llm", "--resume", f"--workdir={workdir}")
    lco_jax.load_policy(workdir)
  finally:
    (folder / "own.py").write_text(before)
  assert done.returncode == 2
  assert not (tmp_path / "ran").exists()


def test_each_reward_by_its_own_scale(folder, tmp_path):
  """Large numbers of one reward do not drown the other."""
  (tmp_path / "scaled.py").write_text(
    "def long(completion, row):\n  return 1e4 * len(completion)\n"
  )
  found = {}
  for how in ("sum", "standardised"):
    workdir = tmp_path / how
    done = scripts.run(
      "train_llm",
      *_flags(
        folder,
        f"--config.rewards={folder}/own.py:near,{tmp_path}/scaled.py:long",
        f"--config.reward_combination={how}",
        "--config.num_updates=1",
        f"--workdir={workdir}",
      ),
    )
    assert done.returncode == 0, done.stderr
    with open(workdir / "metrics.csv") as file:
      (found[how],) = csv.DictReader(file)
  for name in ("reward_near_mean", "reward_long_mean", "reward_long_std"):
    assert found["sum"][name] == found["standardised"][name]
  assert float(found["sum"]["reward_mean"]) > 1e3
  assert abs(float(found["standardised"]["reward_mean"])) < 1e-5
  assert float(found["standardised"]["reward_std"]) < 2.1


_SCRIPT = """
import sys
import lco_jax

def near(completion, row):
  return 1.0 if str(row["answer"]) in completion else len(completion) % 3 / 4

def rows():
  return [{"question": f"{n} + 1 =", "answer": n + 1} for n in range(60)]

def main(model, workdir, *resume):
  done = lco_jax.train_llm(
    model, rows(), [near, ("json", 0)], "grpo", workdir=workdir,
    resume=bool(resume), num_updates=2, num_prompts=4, num_samples=4,
    completion_length=5, eval_problems=4, eval_samples=1, eval_batch=4,
    show_progress=False,
  )
  print(done.metrics["reward_near_mean"].tolist())
  print(done.policies[0].complete(["1 + 2 ="]))

if __name__ == "__main__":
  main(*sys.argv[1:])
"""


def test_training_from_a_script(folder, tmp_path):
  def call(text, *arguments):
    (tmp_path / "script.py").write_text(text)
    return subprocess.run(
      [sys.executable, "script.py", str(folder / "tiny.gguf"), *arguments],
      cwd=tmp_path,
      env=os.environ
      | {"PYTHONPATH": str(scripts.ROOT), "XLA_FLAGS": compiler.flags(1)},
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  done = call(_SCRIPT, "run")
  assert done.returncode == 0, done.stderr
  metrics, answer = done.stdout.splitlines()
  assert len(json.loads(metrics)) == 2
  read = lco_jax.load_policy(tmp_path / "run").complete(["1 + 2 ="])
  assert repr(read) == answer
  again = call(_SCRIPT + "\n# A later line.\n", "run", "--resume")
  assert again.returncode == 0, again.stderr
  assert again.stdout.splitlines()[-1] == answer
  changed = call(_SCRIPT.replace("% 3 / 4", "% 3 / 5"), "run", "--resume")
  assert "ValueError: reward near has changed" in changed.stderr
  script = scripts.run("train_llm", "--resume", f"--workdir={tmp_path / 'run'}")
  assert script.returncode == 2
  unguarded = _SCRIPT.partition("if __name__")[0] + "main(*sys.argv[1:])"
  done = call(unguarded, "other")
  assert done.returncode == 1
  assert "under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


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
    (["--config.rewards=/nowhere.py:own"], "rewards: /nowhere.py: No such"),
    (["--config.question_field=ask"], "line 1: no text in the column 'ask'"),
    (["--config.reward_combination=product"], "reward_combination"),
    (["--config.eval_every=-1"], "eval_every"),
    (["--config.answer_field=solution"], "line 1: no column 'solution'"),
    (["--config.rewards=regex"], "line 1: nothing in the column 'pattern'"),
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


def test_files_for_validation_and_test(folder, tmp_path):
  """And a chat that begins with a system prompt."""
  for name, numbers in (("test", range(3)), ("validation", range(3, 5))):
    rows_of = [
      {"messages": [{"role": "system", "content": "Add."}]}
      | {"answer": n, "level": 0}
      for n in numbers
    ]
    for row, n in zip(rows_of, numbers, strict=True):
      row["messages"].append({"role": "user", "content": f"0 + {n} ="})
    (tmp_path / f"{name}.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows_of)
    )
  flags = _flags(
    folder,
    "--config.num_updates=1",
    *(
      f"--config.{name}={tmp_path / name}.jsonl"
      for name in ("test", "validation")
    ),
    f"--workdir={tmp_path / 'run'}",
  )
  done = scripts.run("train_llm", *flags)
  assert done.returncode == 0, done.stderr
  # The system prompt makes them other questions than those of training.
  assert "data: 60 rows to train on, 2 to validate, 3 to test" in done.stdout
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["evaluation"]["problems"] == 3
  plain = scripts.run("train_llm", *flags, "--config.chat=False")
  assert "chat: must be True, since some rows have messages" in plain.complaint
  (tmp_path / "test.jsonl").write_text("")
  done = scripts.run("train_llm", "--resume", f"--workdir={tmp_path / 'run'}")
  assert f"{tmp_path / 'test.jsonl'} has changed" in done.complaint


def _many(script, folder, workdir, *flags, rates="(1e-2,1e-1)"):
  """Runs a script that trains small models at several learning rates."""
  common = {
    "model": folder / "tiny.gguf",
    "data": folder / "train.jsonl",
    "rewards": f"{folder}/own.py:odd,{folder}/own.py:brief*0",
    "num_seeds": 2,
    "num_updates": 2,
    "num_prompts": 4,
    "num_samples": 4,
    "completion_length": 5,
    "eval_problems": 12,
    "eval_samples": 2,
    "eval_batch": 12,
  }
  common = ",".join(f"{name}={value}" for name, value in common.items())
  return scripts.run(
    script,
    f"--workdir={workdir}",
    *flags,  # First the file of the settings that follow.
    f"--config.policy_learning_rates={rates}",
    f"--config.settings={common}",
  )


def test_a_comparison_trains_each_rate_alone(folder, tmp_path):
  """And takes the best on validation problems to the test problems."""
  workdir = tmp_path / "comparison"
  flags = (
    "--config=experiments/configs/comparison.py:pretrained",
    "--config.tasks=('data',)",
  )
  done = _many(
    "compare",
    folder,
    workdir,
    *flags,
    "--config.variants=('grpo',)",
    "--config.against=",
  )
  assert done.returncode == 0, done.stderr
  assert "[2/2]" in done.stdout
  runs, found = workdir / "data" / "algorithm=grpo", {}
  for rate in ("0.01", "0.1"):
    path = runs / f"run_{rate}" / f"rate_{rate}" / "summary.json"
    found[rate] = json.loads(path.read_text())
    assert found[rate]["learning_rate"] == float(rate)
  accuracy = {
    (rate, how, split): own[split][how]["mean"]
    for rate, own in found.items()
    for how in ("greedy", "sampled")
    for split in ("validation", "evaluation", "before")
  }
  best = max(found, key=lambda rate: accuracy[rate, "sampled", "validation"])
  # They differ, or the comparison could be of anything.
  assert len({accuracy[r, "sampled", "validation"] for r in found}) == 2
  for how in ("greedy", "sampled"):
    same = [accuracy[best, how, s] for s in ("evaluation", "before")]
    assert len({*same, accuracy[best, how, "validation"]}) == 3, how
  with open(workdir / "comparison.csv") as file:
    rows = list(csv.DictReader(file))
  for name, how in (("pass@1", "sampled"), ("greedy", "greedy")):
    values = {
      algorithm: [
        float(row["value"])
        for row in rows
        if (row["algorithm"], row["score"]) == (algorithm, name)
      ]
      for algorithm in ("untrained", "grpo")
    }
    expected = found[best]["evaluation"][how]["per_seed"]
    np.testing.assert_allclose(values["grpo"], expected, rtol=1e-6)
    before = found[best]["before"][how]["per_seed"]
    np.testing.assert_allclose(values["untrained"], before * 2, rtol=1e-6)
  assert f"| data | grpo | {best} |" in done.stdout
  assert "| data | untrained |  |" in done.stdout
  # Rows that have changed are another comparison; nothing is trained.
  path = folder / "train.jsonl"
  content = path.read_text()
  path.write_text(content.rpartition("\n{")[0] + "\n")
  try:
    other = _many("compare", folder, workdir, *flags, "--config.against=")
  finally:
    path.write_text(content)
  assert other.returncode == 2 and "files" in other.complaint
  wrong = _many(
    "compare",
    folder,
    tmp_path / "wrong",
    *flags,
    "--config.variants=('ppo',)",
    "--config.against=",
  )
  assert wrong.returncode == 2 and "value network" in wrong.complaint
  assert not (tmp_path / "wrong").exists()


def test_a_map_goes_past_faults(folder, tmp_path):
  """A run with a fault counts as collapsed; the floor of the map is 0."""
  workdir = tmp_path / "map"
  done = _many(
    "stability_map",
    folder,
    workdir,
    "--config=experiments/configs/stability_map.py:pretrained",
    "--config.base=experiments/configs/llm.py:data",
    "--config.algorithms=('reinforce',)",
    "--config.values=(2,)",
    rates="(1e-2,1e30)",
  )
  assert done.returncode == 0, done.stderr
  with open(workdir / "map.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["learning_rate"] for row in rows] == ["0.01"] * 2 + ["1e+30"] * 2
  cell = workdir / "reinforce" / "num_minibatches_2" / "run_0.01" / "rate_0.01"
  names = ["first_visit_correct", "first_visits", "kl_old_new"]
  logged = run_directory.read_metrics(cell, names)
  final = logged["first_visit_correct"][-1]
  for seed, row in enumerate(rows[:2]):
    assert float(row["final"]) == pytest.approx(final[seed], rel=1e-6) != 0
    largest = logged["kl_old_new"][:, seed].max()
    assert float(row["max_kl"]) == pytest.approx(largest, rel=1e-6)
    assert row["faulted"] == "0"
  for row in rows[2:]:
    assert row["faulted"] == row["collapsed"] == "1"
    assert float(row["final"]) == 0
