import json

import pytest

from lco_jax.runs import run_directory


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


@pytest.mark.parametrize("name", ["algorithm", "hidden_sizes", "optimizer"])
def test_a_run_keeps_its_configuration(tmp_path, name):
  config = {"algorithm": "ppo", "hidden_sizes": [64, 64], "optimizer": "adam"}
  run_directory.create(tmp_path / "run", config)
  run_directory.check_same_config(tmp_path / "run", config)
  with pytest.raises(ValueError, match=f"{name}: the run in .* not 'other'"):
    run_directory.check_same_config(tmp_path / "run", config | {name: "other"})
  without = {k: v for k, v in config.items() if k != name}
  with pytest.raises(ValueError, match=f"{name}: the run in .* not None"):
    run_directory.check_same_config(tmp_path / "run", without)


def test_what_is_no_run_is_named(tmp_path):
  with pytest.raises(ValueError, match="holds no run to resume"):
    run_directory.read_config(tmp_path)
  (tmp_path / "config.json").write_text("[")
  with pytest.raises(ValueError, match="config.json"):
    run_directory.read_config(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(ValueError, match="not a configuration"):
    run_directory.read_config(tmp_path)


def test_who_holds_a_directory_can_be_asked(tmp_path):
  assert not run_directory.in_use(tmp_path / "nothing")
  assert not run_directory.in_use(tmp_path)
  with run_directory.lock(tmp_path):
    assert run_directory.in_use(tmp_path)
  assert not run_directory.in_use(tmp_path)


def test_a_directory_is_held_by_one(tmp_path):
  with (
    run_directory.lock(tmp_path),
    pytest.raises(ValueError, match="in use by another process"),
    run_directory.lock(tmp_path),
  ):
    pass
  with run_directory.lock(tmp_path):
    pass
