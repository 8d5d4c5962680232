"""The benchmark script, on a run too short to measure anything."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import language, llm, losses, steps
from experiments.configs import language as language_config
from lco_jax.trainers import settings as settings_lib
from tests import compiler, scripts, tiny_model

_ROOT = scripts.ROOT
# Main without its process for each number of learners, and much shorter.
_SHORT = """
from experiments import benchmark
from experiments.common import command_line
benchmark._SETTINGS["total_steps"] = 1024
command_line.run(benchmark.main, choices=("control", "language"))
"""


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "-c", _SHORT, *arguments],
    cwd=_ROOT,
    env=os.environ | {"XLA_FLAGS": compiler.flags()},
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_a_line_has_what_was_measured():
  done = _run("control", "--num_seeds=2", "--repeats=2")
  assert done.returncode == 0, done.stderr
  (line,) = map(json.loads, done.stdout.splitlines())
  assert line["num_seeds"] == 2 and line["total_steps"] == 1024
  assert line["repeats"] == 2 and line["algorithm"] == "lco_lch"
  for name in (
    "compile_seconds",
    "train_seconds",
    "steps_per_second",
    "peak_memory_gib",
  ):
    assert line[name] > 0


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ([], "control"),
    (["nope"], "control"),
    (["control", "more"], "more"),
    (["control", "--repeats=0"], "repeats"),
    (["control", "--num_seeds=1", "--algorithm=nope"], "algorithm"),
    (["language", "--num_seeds=1", "--algorithm=nope"], "algorithm"),
    (["llm", "--case=nope"], "case"),
    (["llm", "--case=8 prompts x 4", "--model=nope"], "no such model"),
  ],
)
def test_bad_input_is_one_line(arguments, named):
  done = scripts.run("benchmark", *arguments)
  assert done.returncode == 2 and not done.stdout
  assert named in done.complaint


@pytest.mark.third_party
def test_what_is_measured_of_language(monkeypatch):
  """Generation and learning apart, and the cache, on a tiny model."""
  monkeypatch.setattr(language, "_TOKENS", 8)
  config = language_config.get_config("parity:4")
  config.update(
    {
      "algorithm": "grpo",
      "num_seeds": 2,
      "num_updates": 30,
      "num_prompts": 8,
      "num_layers": 1,
      "width": 8,
      "num_heads": 2,
      "num_kv_heads": 1,
      "mlp_width": 8,
    }
  )
  settings = settings_lib.resolve(config)
  figures = language.measure(settings, num_updates=2, repeats=1)
  figures |= language.decoding(settings)
  for name in (
    "updates_per_second",
    "generation_tokens_per_second",
    "update_tokens_per_second",
    "cached_ms_per_token",
    "cache_speedup",
  ):
    assert figures[name] > 0


@pytest.mark.third_party
@pytest.mark.parametrize(
  "case",
  [
    "8 prompts x 4",
    "8 prompts x 4, 4 to 64 tokens",
    "64 prompts x 8, 4 to 64 tokens, slots",
    "loss 49152 chunked",
    "loss 128256 dense",
  ],
)
def test_what_is_measured_of_pretrained_models(tmp_path, monkeypatch, case):
  for cases in (losses.CASES, losses.LARGE_CASES):
    if case in cases:
      small = cases[case]._replace(vocabulary=96, tokens=64, width=8)
      if small.chunk_tokens is None:
        small = small._replace(chunk_tokens=8)
      monkeypatch.setitem(cases, case, small)
  for cases in (steps.CASES, steps.LARGE_CASES):
    if case in cases:
      small = cases[case]._replace(num_prompts=2, num_samples=4)
      if small.num_slots:
        small = small._replace(num_slots=3)
      monkeypatch.setitem(cases, case, small)
  path = tmp_path / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  figures = llm.measure(case, str(path), "lco_kld", repeats=1)
  seconds = [own for name, own in figures.items() if name.endswith("seconds")]
  assert seconds and min(seconds) >= 0
  assert ("chunk_tokens" in figures) == case.startswith("loss")
  if "to 64" in case:
    fewer = "refilled_generation" if "slots" in case else "packed_update"
    assert 0 < figures[f"{fewer}_slots"] <= figures["generation_slots"]


@pytest.mark.slow
@pytest.mark.third_party
def test_what_is_measured_of_transformers(tmp_path, monkeypatch):
  pytest.importorskip("torch")
  case = "8 prompts x 4, transformers"
  small = llm.PEERS[case]._replace(num_prompts=2, num_samples=2)
  monkeypatch.setitem(llm.PEERS, case, small)
  path = tmp_path / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  figures = llm.measure(case, str(path), "lco_kld", repeats=1)
  assert figures["generation_seconds"] > 0 and figures["update_seconds"] > 0
