"""Compiling for TPU pods by libtpu, without a TPU; make test-tpu-compile."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import scripts

_SHAPE = "--config=experiments/configs/compile_ahead.py:"
_CONTROL = "--config=experiments/configs/control.py:CartPole-v1"


def _run(*flags):
  """Runs the script in a process of its own, without the tests' devices."""
  environment = {
    name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
  }
  done = subprocess.run(
    [sys.executable, "-m", "experiments.compile_ahead", *flags],
    capture_output=True,
    text=True,
    cwd=scripts.ROOT,
    env=environment,
    timeout=1800,
    check=False,
  )
  return done, [json.loads(line) for line in done.stdout.splitlines()]


pod = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs pip install 'jax[tpu]'",
)


@pytest.mark.tpu
@pod
@pytest.mark.parametrize(
  ("shape", "topology", "mesh"),
  [
    ("llama-3.1-8b", "v5e:8x8", "fsdp:16,tensor:4"),
    ("qwen2.5-7b", "v5e:8x8", "fsdp:16,tensor:4"),
  ],
)
def test_a_large_model_fits_a_pod(shape, topology, mesh):
  done, found = _run(_SHAPE + shape, f"--topology={topology}", f"--mesh={mesh}")
  assert done.returncode == 0, done.stderr
  assert [own["program"] for own in found] == ["generation", "update"]
  for own in found:
    assert own["peak_bytes"] < 0.9 * own["chip_bytes"]
    # Weights are gathered in every layer, and not more often than needed.
    assert own["collectives"]["all-gather"]["bytes"] > 1e9
    assert own["roofline_seconds"]["products"] > 0.1


@pytest.mark.tpu
@pod
def test_what_does_not_fit_says_what_helps():
  done, found = _run(
    f"{_SHAPE}llama-3.1-8b",
    "--topology=v5e:2x2",
    "--mesh=fsdp:4",
    "--config.num_prompts=4",
    "--config.num_microbatches=1",
  )
  assert done.returncode == 1 and not all(own["fits"] for own in found)
  assert "more chips" in done.stderr


@pytest.mark.tpu
@pod
def test_control_compiles_for_a_pod():
  done, (own,) = _run(_CONTROL, "--topology=v5e:4x4")
  assert done.returncode == 0, done.stderr
  assert own["program"] == "chunk" and own["fits"]


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--topology=v9:2x2"], "--topology: unknown chip 'v9'"),
    (["--topology=v5e:2xx"], "--topology: want such as v5e:8x8"),
    ([], "--config must be given"),
  ],
)
def test_wrong_input(flags, says):
  flags = flags and [*flags, _CONTROL]
  done, found = _run(*flags)
  assert done.returncode == 2 and not found
  assert done.stderr.startswith("error: ") and says in done.stderr
