"""What is saved comes back bit for bit; what is damaged does not come back."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lco_jax.runs import checkpointing

pytestmark = pytest.mark.third_party


def _tree(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    "a.b": rng.normal(size=(3, 4)).astype(np.float32),
    "a": {"b": rng.normal(size=2).astype(np.float16)},
    "half": np.asarray(jnp.ones(3, jnp.bfloat16)),
  }
  state = optax.adam(1e-3).init(params)
  return jax.tree.map(
    np.asarray,
    {
      "params": params,
      "optimizer": state,
      "counter": np.int32(7),
      "key": rng.integers(0, 2**32, 2, np.uint32),
      "done": np.array([True, False]),
      "nothing": np.zeros((0, 2), np.float32),
      "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    },
  )


def _checkpoints(path, fingerprint="f", keep=3):
  return checkpointing.Checkpoints(path / "checkpoints", fingerprint, keep)


def _zeros(tree):
  return jax.tree.map(np.zeros_like, tree)


def test_everything_comes_back_bit_for_bit(tmp_path):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(10, _tree(), {"offset": 123})
  step, tree, notes = checkpoints.restore(_zeros(_tree()))
  assert step == 10 and notes == {"offset": 123}
  assert jax.tree.structure(tree) == jax.tree.structure(_tree())
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(_tree()), strict=True):
    assert isinstance(a, np.ndarray) and a.dtype == b.dtype
    assert a.tobytes() == b.tobytes()


def test_the_newest_are_kept_and_any_can_be_chosen(tmp_path):
  checkpoints = _checkpoints(tmp_path, keep=2)
  for step in (1, 2, 30):
    checkpoints.save(step, _tree(step), {})
  assert checkpoints.steps() == [2, 30]
  like = _zeros(_tree())
  assert checkpoints.restore(like)[0] == 30
  step, tree, _ = checkpoints.restore(like, 2)
  np.testing.assert_array_equal(
    tree["params"]["a.b"], _tree(2)["params"]["a.b"]
  )
  with pytest.raises(checkpointing.CheckpointError, match="no checkpoint 1;"):
    checkpoints.restore(like, 1)


def test_a_step_that_exists_stays_as_it_is(tmp_path):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(1, _tree(1), {})
  checkpoints.save(1, _tree(2), {})
  _, tree, _ = checkpoints.restore(_zeros(_tree()))
  np.testing.assert_array_equal(tree["key"], _tree(1)["key"])


def test_a_save_cut_short_is_not_seen_and_is_removed(tmp_path):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(1, _tree(), {})
  shutil.copytree(
    checkpoints.directory / "1", checkpoints.directory / "partial-2"
  )
  (checkpoints.directory / "partial-2" / "manifest.json").unlink()
  assert checkpoints.steps() == [1]
  checkpoints.save(3, _tree(), {})
  assert {p.name for p in checkpoints.directory.iterdir()} == {"1", "3"}


def _data_file(path):
  files = [p for p in path.rglob("*") if p.is_file() and p.parent.name == "d"]
  return max(files, key=lambda p: p.stat().st_size)


def _flip_a_bit(path):
  file = _data_file(path)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def _truncate(path):
  file = _data_file(path)
  file.write_bytes(file.read_bytes()[:-1])


def _remove_a_file(path):
  _data_file(path).unlink()


def _garble_the_manifest(path):
  (path / "manifest.json").write_text("{")


def _rename(path):
  path.rename(path.parent / "3")


@pytest.mark.parametrize(
  "damage",
  [_flip_a_bit, _truncate, _remove_a_file, _garble_the_manifest, _rename],
)
def test_damage_is_noticed_and_older_ones_stay_usable(tmp_path, damage):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(1, _tree(), {})
  checkpoints.save(2, _tree(), {})
  damage(checkpoints.directory / "2")
  like = _zeros(_tree())
  with pytest.raises(
    checkpointing.CheckpointError, match="damaged.*older ones: 1$"
  ):
    checkpoints.restore(like)
  assert checkpoints.restore(like, 1)[0] == 1


def _empty_directory(path):
  path.mkdir()


def _symlink(path):
  path.symlink_to(path.parent / "1")


@pytest.mark.parametrize("put", [_empty_directory, _symlink])
def test_what_is_no_checkpoint_is_named(tmp_path, put):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(1, _tree(), {})
  put(checkpoints.directory / "99")
  with pytest.raises(checkpointing.CheckpointError, match="99 is not a check"):
    checkpoints.restore(_zeros(_tree()))


def test_another_configuration_is_refused(tmp_path):
  first = checkpointing.fingerprint({"algorithm": "ppo", "lr": 0.1})
  same = checkpointing.fingerprint({"lr": 0.1, "algorithm": "ppo"})
  other = checkpointing.fingerprint({"algorithm": "lco_mse", "lr": 0.1})
  assert first == same != other
  _checkpoints(tmp_path, first).save(1, _tree(), {})
  with pytest.raises(checkpointing.CheckpointError, match="another config"):
    _checkpoints(tmp_path, other).restore(_zeros(_tree()))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t | {"counter": np.float32(0)}, "counter.*int32.*float32"),
    (lambda t: t | {"done": np.zeros(3, bool)}, r"done.*bool\[2\].*bool\[3\]"),
    (lambda t: t | {"more": np.zeros(1)}, "more.*None"),
    (lambda t: {k: t[k] for k in t if k != "key"}, "key.*not expected"),
    (
      lambda t: t | {"optimizer": optax.sgd(0.1, 0.9).init(t["params"])},
      "optimizer.*None",
    ),
  ],
)
def test_another_structure_is_refused(tmp_path, change, message):
  """Orbax alone would cast floats to integers. Adam's state has the structure
  of Adamax's: these two only the fingerprint tells apart."""
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(1, _tree(), {})
  with pytest.raises(checkpointing.CheckpointError, match=message):
    checkpoints.restore(change(_zeros(_tree())))


def test_a_full_disk_costs_only_the_new_checkpoint(tmp_path):
  """In a process of its own, which may write no file over 20 kB."""
  checkpoints = _checkpoints(tmp_path)
  small = {"x": np.zeros(10, np.float32)}
  checkpoints.save(1, small, {})
  code = f"""
import pathlib, resource
import numpy as np
from lco_jax.runs import checkpointing
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).normal(size=100_000)
c = checkpointing.Checkpoints(
  pathlib.Path({str(checkpoints.directory)!r}), "f", 3
)
try:
  c.save(2, {{"x": noise}}, {{}})
except checkpointing.CheckpointError as error:
  print("refused:", error)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
  )
  assert done.stdout.startswith("refused: checkpoint"), done
  assert len(done.stdout.splitlines()) == 1
  assert [p.name for p in checkpoints.directory.iterdir()] == ["1"]
  assert checkpoints.restore(_zeros(small))[0] == 1


def test_the_manifest_is_readable(tmp_path):
  checkpoints = _checkpoints(tmp_path)
  checkpoints.save(4, {"x": np.zeros((2, 3), np.float32)}, {"seconds": 1.5})
  manifest = json.loads((checkpoints.directory / "4/manifest.json").read_text())
  assert manifest["leaves"] == {"['x']": "float32[2, 3]"}
  assert manifest["notes"] == {"seconds": 1.5}
