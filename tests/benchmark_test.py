"""The benchmark script, on a run too short to measure anything."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
# Main without its process for each number of learners, and much shorter.
_SHORT = """
from experiments import benchmark, command_line
benchmark._SETTINGS["total_steps"] = 1024
command_line.run(benchmark.main, choices=("control", "language"))
"""


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "-c", _SHORT, *arguments],
    cwd=_ROOT,
    env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
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
  ],
)
def test_bad_input_is_one_line(arguments, named):
  done = _run(*arguments)
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and named in line
