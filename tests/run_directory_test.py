import json

import pytest

from lco_jax import run_directory


def test_create_writes_the_config(tmp_path):
  for path in (tmp_path / "a" / "b", tmp_path / "empty"):
    if path.name == "empty":
      path.mkdir()
    run_directory.create(path, {"x": [1, None]})
    assert json.loads((path / "config.json").read_text()) == {"x": [1, None]}
    assert [p.name for p in path.iterdir()] == ["config.json"]


def test_a_used_or_impossible_directory_is_named(tmp_path):
  used = tmp_path / "used"
  used.mkdir()
  (used / "file").write_text("precious")
  with pytest.raises(ValueError, match="already in use"):
    run_directory.create(used, {})
  with pytest.raises(ValueError, match="not a directory"):
    run_directory.create(used / "file", {})
  with pytest.raises(ValueError, match="cannot be written"):
    run_directory.create(used / "file" / "below", {})
  with pytest.raises(ValueError, match="cannot be written"):
    run_directory.create(type(tmp_path)("/proc/nope"), {})
  assert [p.name for p in used.iterdir()] == ["file"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "x.json"
  with pytest.raises(ValueError):
    run_directory.write_json(path, {"x": float("nan")})
  assert not path.exists()
