"""Pretrained models on a mesh: devices, processes, resuming."""

import contextlib
import json
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from lco_jax import pretrained
from lco_jax.runs import run_directory
from lco_jax.trainers import llm
from tests import scripts, tiny_model

# One worker: every run is eight devices.
pytestmark = pytest.mark.xdist_group("distributed")

_STAND_INS = str(scripts.ROOT / "tests" / "stand_ins")
_FLAGS = (
  "--config=experiments/configs/llm.py:chain_sum",
  "--config.task_options=",
  "--config.extraction=whole",
  "--config.reward=score",
  "--config.algorithm=lco_fisher",
  "--config.num_updates=4",
  "--config.num_epochs=2",
  "--config.num_prompts=8",
  "--config.num_samples=4",
  "--config.completion_length=5",
  "--config.eval_problems=4",
  "--config.eval_samples=2",
  "--config.eval_batch=4",
  "--config.learning_rate_warmup=0",
  "--config.policy_learning_rate=0.003",
  "--config.checkpoint_seconds=0",
  "--config.keep_checkpoints=4",
  "--config.export=True",
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  return path


def _start(workdir, *flags, devices=8, script="train_llm"):
  return scripts.Process(
    script,
    f"--workdir={workdir}",
    *flags,
    devices=devices,
    path=_STAND_INS,
  )


def _train(workdir, *flags, **options):
  done = _start(workdir, *flags, **options).finish()
  assert done.returncode == 0, done.stderr
  assert "rematerialization" not in done.stderr  # XLA's, of what it replicates.
  return workdir


def _new(model_path):
  return (*_FLAGS, f"--config.model={model_path}")


@pytest.fixture(scope="module")
def divided(model_path, tmp_path_factory):
  """A finished run on fsdp:4, tensor:2."""
  workdir = tmp_path_factory.mktemp("runs") / "divided"
  mesh = "--mesh=fsdp:4,tensor:2"
  return _train(workdir, *_new(model_path), mesh)


def _exported(workdir):
  params = pretrained.load(str(workdir / "model_0")).params["params"]
  return {"embedding": params["embed"]["embedding"], **params["blocks"]["up"]}


def _assert_close(one, other):
  for name in ("entropy", "reward_mean", "policy_gradient_norm"):
    a, b = (run_directory.read_metrics(w, [name])[name] for w in (one, other))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5, err_msg=name)
  a, b = _exported(one), _exported(other)
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=0, atol=2e-5)


def test_a_summary_has_the_phases(divided):
  """Seconds and tokens of generation and update, of one device."""
  timings = json.loads((divided / "summary.json").read_text())["timings"]
  assert {"generation_seconds", "scoring_seconds", "update_seconds"} <= set(
    timings
  )
  assert min(timings.values()) > 0
  assert timings["generation_tokens_per_second"] < 8 * 4 * 5 / (
    8 * timings["generation_seconds"] / 1.5
  )


def test_a_mesh_is_as_one_device(divided, model_path, tmp_path):
  alone = _train(tmp_path / "alone", *_new(model_path), devices=1)
  _assert_close(divided, alone)


@pytest.mark.third_party
def test_slots_and_blocks_of_attention(
  divided, model_path, tmp_path, monkeypatch
):
  """Both change nothing; devices refill their slots at different times."""
  flags = ("--config.generation_slots=3", "--config.attention_block=4")
  mesh = _train(
    tmp_path / "mesh",
    *_new(model_path),
    *flags,
    "--mesh=data:2,tensor:2",
    devices=4,
  )
  _assert_close(divided, mesh)
  monkeypatch.syspath_prepend(_STAND_INS)
  run = llm.build(run_directory.read_config(mesh))
  for name in [own for own in sys.modules if own.startswith("reasoning_gym")]:
    sys.modules.pop(name)  # Other tests look for the package itself.
  assert run.asking.num_slots == 3 and run.model_config.attention_block == 4
  # Of a directory that an earlier version wrote.
  path = mesh / "config.json"
  path.write_text(path.read_text().replace('"generation_slots"', '"other"'))
  for more in ((), ("--extend_to=8",)):
    done = _start(mesh, "--resume", *more, devices=1).finish()
    assert done.returncode == 2
    assert "config.json has no generation_slots" in done.complaint


def test_adapters_on_a_mesh(model_path, tmp_path):
  flags = ("--config.lora_rank=2", "--config.num_updates=2")
  flags = scripts.overridden(*_new(model_path), *flags)
  mesh = _train(tmp_path / "mesh", *flags, "--mesh=fsdp:4,tensor:2")
  _assert_close(mesh, _train(tmp_path / "alone", *flags, devices=1))


def test_a_verifier_on_a_mesh(model_path, tmp_path):
  """It is trained, evaluated and exported by parts, and so asked."""
  judge, flags = tmp_path / "judge", ("--config.num_updates=2",)
  own = [flag for flag in _FLAGS if "max_visits" not in flag]
  _train(
    judge,
    *scripts.overridden(
      *own,
      "--config=experiments/configs/verifier.py:chain_sum",
      f"--config.model={model_path}",
      "--config.algorithm=dpo",
      *flags,
    ),
    "--mesh=fsdp:8",
    script="train_verifier",
  )
  asks = (
    "--config.algorithm=lco_kld",
    "--config.advantage=preference",
    f"--config.verifier={judge / 'model_0'}",
    # Adam takes whole steps of what is nothing but rounding.
    "--config.policy_learning_rate=0.0003",
    *flags,
  )
  flags = scripts.overridden(*_new(model_path), *asks)
  mesh = _train(tmp_path / "mesh", *flags, "--mesh=fsdp:4,tensor:2")
  _assert_close(mesh, _train(tmp_path / "alone", *flags, devices=1))


def _forget_the_end(workdir, again):
  """A copy of a run, as if it had ended after two updates."""
  shutil.copytree(workdir, again)
  for step in ("3", "4"):
    shutil.rmtree(again / "checkpoints" / step)
  (again / "summary.json").unlink()
  return again


def test_the_same_mesh_goes_on_bit_for_bit(divided, tmp_path):
  again = _forget_the_end(divided, tmp_path / "again")
  _train(again, "--resume", "--mesh=fsdp:4,tensor:2")
  for name in ("metrics.csv", "model_0/model.safetensors"):
    assert (again / name).read_bytes() == (divided / name).read_bytes()


@pytest.mark.parametrize(
  ("mesh", "devices"),
  [("data:2,fsdp:4", 8), ("tensor:2,data:4", 8), ("seeds:1", 1)],
)
def test_another_mesh_goes_on(divided, tmp_path, mesh, devices):
  again = _forget_the_end(divided, tmp_path / "again")
  _train(again, "--resume", f"--mesh={mesh}", devices=devices)
  _assert_close(again, divided)


@contextlib.contextmanager
def _job(workdir, *flags, second=None):
  """Two processes of four devices, of which fsdp spans both.

  Args:
    workdir: of the run.
    *flags: of both.
    second: the directory that the second takes for it; None for the same.
  """
  address = scripts.free_address()
  started = [
    _start(
      second if second is not None and number else workdir,
      *flags,
      "--mesh=fsdp:4,tensor:2",
      "--nogather_weights",  # Each token gathers the layers anew.
      "--distributed",
      f"--coordinator={address}",
      "--num_processes=2",
      f"--process_id={number}",
      "--heartbeat_timeout=5",
      devices=4,
    )
    for number in range(2)
  ]
  try:
    yield started
  finally:
    for process in started:
      process.end()


def _wait_for(path, started):
  deadline = time.monotonic() + 200
  while not path.exists():
    assert time.monotonic() < deadline, path
    for process in started:
      assert process.poll() is None, process.finish().stderr
    time.sleep(0.01)


def test_a_job_that_loses_a_process_goes_on(divided, model_path, tmp_path):
  """Each process has read and saved its parts, evaluated and exported."""
  workdir = tmp_path / "two"
  flags = scripts.overridden(*_new(model_path), "--config.eval_every=1")
  with _job(workdir, *flags) as started:
    _wait_for(workdir / "checkpoints" / "2", started)
    started[1].send_signal(signal.SIGKILL)
    done = started[0].finish(60)
  assert done.returncode != 0
  assert "error: process 0 ends: process 1 is gone" in done.stderr
  for folder in ("checkpoints/2", "best/*"):
    (arrays,) = workdir.glob(f"{folder}/arrays")
    for number in (0, 1):
      parts = arrays / f"ocdbt.process_{number}" / "d"
      assert sum(path.stat().st_size for path in parts.iterdir()) > 0
  # All have to see the directory.
  other = tmp_path / "other"
  other.mkdir()
  shutil.copy(workdir / "config.json", other)
  with _job(workdir, "--resume", second=other) as started:
    done = [process.finish(60) for process in started]
  for own in done:
    assert own.returncode != 0
    assert "take a directory that all processes share" in own.stderr
  with _job(workdir, "--resume") as started:
    done = [process.finish() for process in started]
  assert [own.returncode for own in done] == [0, 0], done[0].stderr[-2000:]
  assert "model:" in done[0].stdout and "model:" not in done[1].stdout
  _assert_close(workdir, divided)
  _check_damage(workdir)


def _check_damage(workdir):
  """Of its files each process checks some, and tells the other."""
  arrays = workdir / "checkpoints" / "4" / "arrays"
  file = max(
    arrays.rglob("ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size
  )
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  for change in (lambda: file.write_bytes(data), file.unlink):
    change()
    with _job(workdir, "--resume") as started:
      done = [process.finish(60) for process in started]
    for own in done:
      assert own.returncode != 0
      (line,) = [x for x in own.stderr.splitlines() if x.startswith("error: ")]
      assert f"{arrays.parent} is damaged: file " in line and file.name in line


def test_a_dry_run_counts_a_devices_part(model_path):
  """An eighth of what is divided; norms and the like are whole."""

  def estimate(*flags, devices):
    process = scripts.Process(
      "train_llm",
      "--dry_run",
      *_new(model_path),
      *flags,
      devices=devices,
      path=_STAND_INS,
    )
    done = process.finish()
    assert done.returncode == 0, done.stderr
    found = re.search(r"optimizer state +(\d+) KiB", done.stdout)
    return int(found[1])

  whole = estimate(devices=1)
  part = estimate("--mesh=fsdp:8", devices=8)
  assert whole / 9 < part < whole / 6


@pytest.mark.parametrize(
  ("mesh", "says"),
  [
    ("fsdp:4", "mesh: seeds:1,data:1,fsdp:4,tensor:1 has 4 devices, but"),
    ("tensor:8", "mesh: tensor:8 does not divide the model's num_heads 4"),
    ("fspd:8", "mesh: unknown axis 'fspd' (did you mean fsdp?)"),
  ],
)
def test_a_wrong_mesh(model_path, tmp_path, mesh, says):
  workdir = tmp_path / "run"
  done = _start(workdir, *_new(model_path), f"--mesh={mesh}").finish()
  assert done.returncode == 2 and not workdir.exists()
  assert says in done.complaint
