"""The scripts of pretrained models as a user runs them, on a tiny one."""

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest
import scipy.special

import lco_jax
from lco_jax import networks, pretrained
from lco_jax.runs import run_directory
from tests import scripts, tiny_model

pytestmark = pytest.mark.xdist_group("train_llm")

_CONFIG = "--config=experiments/configs/llm.py:chain_sum"
# So that no test needs reasoning-gym, whose parts have to be compiled.
_STAND_INS = str(scripts.ROOT / "tests" / "stand_ins")
_SMALL = (
  "--config.task_options=",
  "--config.extraction=whole",
  "--config.reward=score",
  "--config.num_updates=4",
  "--config.num_epochs=2",
  "--config.reference_coefficient=0.1",
  "--config.max_visits=3",
  "--config.num_prompts=4",
  "--config.num_samples=4",
  "--config.completion_length=5",
  "--config.eval_problems=4",
  "--config.eval_samples=2",
  "--config.eval_batch=4",
  "--config.learning_rate_warmup=0",
  "--config.policy_learning_rate=0.01",
  "--config.checkpoint_seconds=0",
  "--config.keep_checkpoints=4",
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  return path


def _train(model_path, *flags, **options):
  return scripts.run(
    "train_llm",
    *scripts.overridden(
      _CONFIG, f"--config.model={model_path}", *_SMALL, *flags
    ),
    path=_STAND_INS,
    **options,
  )


@pytest.fixture(scope="module")
def finished(model_path, tmp_path_factory):
  """A run, and what it said."""
  workdir = tmp_path_factory.mktemp("llm") / "run"
  done = _train(model_path, f"--workdir={workdir}", "--config.export=True")
  assert done.returncode == 0, done.stderr
  return workdir, done


def _completions(workdir):
  with open(workdir / "completions.jsonl") as file:
    return [json.loads(line) for line in file]


def _metrics(workdir):
  with open(workdir / "metrics.csv") as file:
    return list(csv.DictReader(file))


def test_a_run_leaves_a_whole_directory(finished):
  workdir, done = finished
  files = {"config.json", "metrics.csv", "tensorboard", "checkpoints", ".lock"}
  files |= {"summary.json", "learning_curve.png", "completions.jsonl"}
  assert {path.name for path in workdir.iterdir()} == files | {
    "before.json",
    "model_0",
  }
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["total_samples"] == 4 * 4 * 4
  assert summary["evaluation"]["split"] == "test"
  rows = _metrics(workdir)
  assert [row["update"] for row in rows] == ["1", "2", "3", "4"]
  assert {"correct", "kl_old_new", "target_tail_mass"} <= set(rows[0])
  # What none of a prompt's samples solve is met three times.
  assert [float(row["first_visits"]) for row in rows] == [4, 0, 0, 4]
  assert [row["first_visit_correct"] for row in rows][1:3] == ["", ""]
  shown = _completions(workdir)
  assert [line["update"] for line in shown] == [1] * 4 + [2] * 4 + [3] * 4 + [
    4
  ] * 4
  assert len({line["completion"] for line in shown[:4]}) > 1
  assert len({line["question"] for line in shown[:4]}) == 1
  for said in ("before: test: greedy", "update 4:", "model:"):
    assert said in done.stdout


@pytest.mark.parametrize("devices", [1, 2])
def test_seeds_side_by_side(finished, model_path, tmp_path, devices):
  """Each is as if alone, on a device of its own or not."""
  workdir = tmp_path / "run"
  done = _train(
    model_path,
    f"--workdir={workdir}",
    "--config.num_seeds=2",
    "--config.export=True",
    devices=devices,
  )
  assert done.returncode == 0, done.stderr
  rows, alone = (
    run_directory.read_metrics(own, ["entropy"])["entropy"]
    for own in (workdir, finished[0])
  )
  assert rows.shape == (4, 2)
  np.testing.assert_allclose(rows[:, 0], alone[:, 0], rtol=1e-3)
  assert np.abs(rows[:, 1] / rows[:, 0] - 1).max() > 1e-3
  a, b = (
    (workdir / name / "model.safetensors").read_bytes()
    for name in ("model_0", "model_1")
  )
  assert a != b
  shown = _completions(workdir)  # Of the first seed.
  assert shown[:4] == _completions(finished[0])[:4]


def test_the_export_is_what_was_trained(finished, model_path):
  workdir, _ = finished
  before, after = (
    pretrained.load(str(path)) for path in (model_path, workdir / "model_0")
  )
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), before.params, after.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3
  assert after.config == before.config


def test_a_resumed_run_is_the_same(finished, model_path, tmp_path):
  """After the last two checkpoints are lost, as by a crash between saves."""
  workdir, _ = finished
  again = tmp_path / "run"
  shutil.copytree(workdir, again)
  for step in ("3", "4"):
    shutil.rmtree(again / "checkpoints" / step)
  (again / "summary.json").unlink()
  exported = again / "model_0" / "model.safetensors"
  exported.write_bytes(b"of other steps")
  done = scripts.run(
    "train_llm", f"--workdir={again}", "--resume", path=_STAND_INS
  )
  assert done.returncode == 0, done.stderr
  for name in ("metrics.csv", "completions.jsonl"):
    assert (again / name).read_bytes() == (workdir / name).read_bytes()
  weights = workdir / "model_0" / "model.safetensors"
  assert exported.read_bytes() == weights.read_bytes()


_HALVES = "--config.num_microbatches=2"


@pytest.fixture(scope="module")
def divided(model_path, tmp_path_factory):
  """A run on two devices: half of the prompts each, in two parts."""
  workdir = tmp_path_factory.mktemp("llm") / "run"
  done = _train(model_path, f"--workdir={workdir}", _HALVES, devices=2)
  assert done.returncode == 0, done.stderr
  return workdir


def test_devices_do_not_matter(finished, divided):
  one, two = (_metrics(path) for path in (finished[0], divided))
  assert float(one[1]["kl_old_new"]) > 1e-4
  # What rounding does grows from update to update.
  for update, tolerance in ((0, 1e-2), (1, 3e-2)):
    for name, value in one[update].items():
      np.testing.assert_allclose(
        float(two[update][name] or "nan"),
        float(value or "nan"),
        rtol=tolerance,
        atol=2e-4,
        err_msg=name,
      )


def test_two_processes_are_as_two_devices(divided, model_path, tmp_path):
  """Each asks and scores its own; both know which prompts are met again."""
  workdir = tmp_path / "run"
  coordinator = scripts.free_address()
  started = [
    scripts.Process(
      "train_llm",
      *scripts.overridden(
        _CONFIG, f"--config.model={model_path}", *_SMALL, _HALVES
      ),
      f"--workdir={workdir}",
      "--distributed",
      f"--coordinator={coordinator}",
      "--num_processes=2",
      f"--process_id={number}",
      path=_STAND_INS,
    )
    for number in range(2)
  ]
  for process in started:
    done = process.finish()
    assert done.returncode == 0, done.stderr
  assert _completions(workdir) == _completions(divided)
  assert _metrics(workdir) == _metrics(divided)


@pytest.mark.third_party  # optax.
@pytest.mark.parametrize("form", ["float32", "nf4"])
def test_adapters_alone_are_trained(model_path, tmp_path, monkeypatch, form):
  """With a KL to the policy at the start, which is what they adapt."""
  workdir = tmp_path / "run"
  done = _train(
    model_path,
    f"--workdir={workdir}",
    "--config.num_updates=2",
    "--config.lora_rank=2",
    f"--config.base_format={form}",
    "--config.export=True",
  )
  assert done.returncode == 0, done.stderr
  before, after = (
    pretrained.load(str(path)).params["params"]
    for path in (model_path, workdir / "model_0")
  )
  if form != "float32":
    before = networks.widen(networks.narrow(before, form))
  moved = jax.tree_util.tree_map_with_path(
    lambda path, a, b: (path[-1].key, float(np.abs(a - b).max())), before, after
  )
  changes = {"kernel": [], "scale": [], "embedding": []}
  for kind, change in jax.tree.leaves(
    moved, is_leaf=lambda x: type(x) is tuple
  ):
    changes[kind].append(change)
  assert min(changes["kernel"]) > 1e-4  # The float32 of the file is exact.
  assert max(changes["scale"] + changes["embedding"]) == 0
  monkeypatch.syspath_prepend(_STAND_INS)
  policy = lco_jax.load_policy(workdir)
  held = networks.widen(policy.pretrained.params)["params"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 0, 1e-6), held, after
  )
  assert isinstance(policy.complete(["1 + 2 ="])[0], str)


def test_a_verifier_and_a_policy_that_asks_it(model_path, tmp_path):
  """Trained by preferences; its ratio to where it began is the advantage."""
  judge = tmp_path / "judge"
  policys = ("reference_coefficient", "max_visits")
  own = [flag for flag in _SMALL if not any(name in flag for name in policys)]
  done = scripts.run(
    "train_verifier",
    "--config=experiments/configs/verifier.py:chain_sum",
    f"--config.model={model_path}",
    f"--workdir={judge}",
    *scripts.overridden(*own, "--config.eval_samples=6"),
    "--config.algorithm=dpo",
    path=_STAND_INS,
  )
  assert done.returncode == 0, done.stderr
  assert "held-out pairs, before 0.500" in done.stdout  # All ratios are 1.
  summary = json.loads((judge / "summary.json").read_text())
  assert 0 <= summary["test"]["mean"] <= 1 and summary["test"]["pairs"] > 0
  workdir = tmp_path / "run"
  done = _train(
    model_path,
    f"--workdir={workdir}",
    "--config.algorithm=lco_kld",
    "--config.advantage=preference",
    f"--config.verifier={judge / 'model_0'}",
    "--config.num_updates=1",
    "--config.num_epochs=1",
    "--config.eval_samples=1",
  )
  assert done.returncode == 0, done.stderr
  (row,) = _metrics(workdir)
  assert float(row["policy_gradient_norm"]) > 1e-3
  # Six tokens are known, at most; the tail is what the target gives others.
  assert 0.1 < float(row["target_tail_mass"]) < 0.99
  # A verifier of shorter texts than the policy's is not asked about longer.
  config = judge / "model_0" / "config.json"
  sizes = json.loads(config.read_text())
  config.write_text(json.dumps(sizes | {"max_position_embeddings": 8}))
  done = _train(
    model_path,
    "--dry_run",
    "--config.advantage=verifier",
    f"--config.verifier={judge / 'model_0'}",
  )
  assert done.returncode == 2
  assert "completion_length 5 after a prompt" in done.complaint


def test_a_dry_run_says_what_it_would_take(model_path):
  done = _train(model_path, "--dry_run", "--config.algorithm=ppo")
  assert done.returncode == 2  # ppo needs a value network.
  assert "'learned', the algorithm's default, needs a value" in done.complaint
  done = _train(model_path, "--dry_run", "--resume")
  assert done.complaint == "error: --resume needs --workdir"
  done = _train(
    model_path,
    "--dry_run",
    "--config.algorithm=dapo",
    "--config.num_epochs=1",
    "--config.agreement_beta_multiple=2",
  )
  assert done.returncode == 0, done.stderr
  count = sum(weight.size for weight in tiny_model.weights().values())
  for said in (
    f"{count:,} parameters",
    "4 prompts × 4 samples = 16 completions",
    "clip_high: no ratio leaves 1 in one on-policy step",
    "beta: dapo has no optimal target",
    "agreement_beta_multiple: dapo has no optimal target",
    "attention weights",
  ):
    assert said in done.stdout, done.stdout
  held = dict(re.findall("^  (.+?)  +(.+)$", done.stdout, re.MULTILINE))
  for name, numbers in (
    ("the models as they were read", count),
    ("parameters (policy, reference)", 2 * count),
    ("optimizer state", 2 * count),
    ("parameters and state before the update", 3 * count),
  ):
    assert held[name] == f"{numbers * 4 / 2**10:.0f} KiB"


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--config.model=none", "none: no such model"),
    ("--config.task_options=a", "task_options"),
    ("--config.task_options=a=1", "chain_sum cannot be made"),
    ("--config.extraction=x", "extraction: unknown 'x'"),
    ("--config.num_samples=1", "num_samples must be ≥ 2"),
    ("--config.num_microbatches=3", "num_microbatches 3 does not divide"),
    ("--config.generation_slots=-1", "generation_slots must be finite and ≥ 0"),
    ("--config.completion_length=200", "completion_length 200"),
    ("--config.temperature=0", "temperature"),
    ("--config.chunk_tokens=-1", "chunk_tokens"),
    ("--config.reward=near", "reward: unknown 'near'"),
    ("--config.policy_learning_rates=(1e-3, 1e-2)", "policy_learning_rates"),
    ("--config.advantage=oracle", "advantage: 'oracle'"),
    ("--config.clip_low=0.1", "clip_low: lco_mse takes"),
    ("--config.verifier=x", "verifier: group_relative advantages ask none"),
    ("--config.advantage=verifier", "verifier must be set"),
  ],
)
def test_wrong_settings(model_path, tmp_path, flag, says):
  workdir = tmp_path / "run"
  done = _train(model_path, f"--workdir={workdir}", flag)
  assert done.returncode == 2
  assert says in done.complaint
  assert not workdir.exists()


def test_a_device_needs_prompts_for_every_microbatch(model_path, tmp_path):
  workdir = tmp_path / "run"
  done = _train(
    model_path,
    f"--workdir={workdir}",
    "--config.num_microbatches=4",
    devices=2,
  )
  assert done.returncode == 2
  assert done.complaint == (
    "error: num_microbatches 4 does not divide the 2 prompts of a device"
  )
  assert not workdir.exists()


def _generate(model_path, folder, lines, *flags):
  asked = folder / "in.jsonl"
  asked.write_text("\n".join(lines))
  out = folder / "out.jsonl"
  done = scripts.run(
    "generate",
    f"--model={model_path}",
    f"--prompts={asked}",
    f"--out={out}",
    *flags,
  )
  if done.returncode:
    assert not out.exists() and len(list(folder.iterdir())) == 1
    return done, None
  return done, [json.loads(line) for line in out.read_text().splitlines()]


def test_generate_against_numpy(model_path, tmp_path):
  """Prompts of several lengths, more than a batch."""
  texts = ["hello", "hello hello  world 12", "a", "b" * 20, "ünder", "xyz"]
  done, rows = _generate(
    model_path,
    tmp_path,
    [json.dumps({"text": text}) for text in texts],
    "--max_new_tokens=5",
    "--batch_size=4",
    "--temperature=1",
    "--num_samples=2",
  )
  assert done.returncode == 0, done.stderr
  model = pretrained.load(str(model_path))
  for text, row in zip(texts, rows, strict=True):
    assert row["text"] == text
    assert row["ids"] == model.tokenizer.encode(text)
    read = row["ids"] + row["greedy_ids"]
    logits = tiny_model.logits(tiny_model.weights(), read)
    log_probs = scipy.special.log_softmax(logits, axis=-1)
    at, asked = len(row["ids"]), np.array(row["ids"])
    np.testing.assert_allclose(
      row["token_nll"],
      -log_probs[np.arange(at - 1), asked[1:]],
      atol=1e-4,
    )
    best = np.argsort(-logits[at - 1])[:20]
    assert row["last_top20_ids"] == best.tolist()
    np.testing.assert_allclose(
      row["last_top20_logits"], logits[at - 1, best], atol=1e-4
    )
    assert row["greedy_ids"] == logits[at - 1 : -1].argmax(-1).tolist()
    assert len(row["greedy_ids"]) == 5 or row["greedy_ids"][-1] == 2
    assert len(row["samples"]) == 2


def test_generate_by_chat(model_path, tmp_path):
  done, (row,) = _generate(
    model_path, tmp_path, ['{"text": "hi"}'], "--chat", "--max_new_tokens=2"
  )
  assert done.returncode == 0, done.stderr
  assert row["text"] == "<|start|>user\nhi<|stop|><|start|>assistant\n"


@pytest.mark.parametrize(
  ("lines", "flag", "says"),
  [
    (['{"text": "a"}', "{"], "--batch_size=2", "line 2"),
    (['{"text": 1}'], "--batch_size=2", "line 1"),
    (['{"text": "\\ud800 a"}'], "--batch_size=2", "line 1"),
    (['{"text": "a"}'], "--max_new_tokens=128", "--max_new_tokens 128"),
    (['{"text": "a"}'], "--temperature=-1", "temperature"),
    (['{"text": "a"}'], "--num_samples=2", "--num_samples needs --temperature"),
    (['{"text": "a"}'], "--out=/none/x", "--out /none/x"),
    (['{"text": "a"}'], "--out=.", "--out .: is a folder"),
    (['{"text": "a"}'], "--model=none", "none: no such model"),
  ],
)
def test_generate_refuses(model_path, tmp_path, lines, flag, says):
  done, _ = _generate(model_path, tmp_path, lines, flag)
  assert done.returncode == 2
  assert says in done.complaint
