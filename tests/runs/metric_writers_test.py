import importlib.util
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from lco_jax.runs import metric_writers, run_directory

_METRICS = {
  "loss": np.array([[0.1, 0.2], [0.3, 0.4]]),
  "episode_return_mean": np.array([[np.nan, 1.5], [2.5, np.nan]]),
}


def test_csv_has_a_row_for_each_update_and_seed_and_reads_back(tmp_path):
  writer = metric_writers.CsvWriter(tmp_path / "metrics.csv", seeds=(7, 8))
  writer.write([1], [100], {k: v[:1] for k, v in _METRICS.items()})
  writer.write([2], [200], {k: v[1:] for k, v in _METRICS.items()})
  writer.close()
  lines = (tmp_path / "metrics.csv").read_text().splitlines()
  assert lines[0] == "update,env_steps,seed,episode_return_mean,loss"
  assert lines[1] == "1,100,7,,0.1" and len(lines) == 5
  logged = run_directory.read_metrics(tmp_path, list(_METRICS))
  for name, values in _METRICS.items():
    np.testing.assert_allclose(logged[name], values)
  np.testing.assert_array_equal(logged["env_steps"], [100, 200])


def test_csv_does_not_overwrite(tmp_path):
  (tmp_path / "metrics.csv").write_text("precious")
  with pytest.raises(FileExistsError):
    metric_writers.CsvWriter(tmp_path / "metrics.csv", seeds=(0,))


def test_csv_goes_on_after_an_update(tmp_path):
  """What a killed run wrote of later updates, half a row too, is cut off."""
  path = tmp_path / "metrics.csv"
  many = {
    name: np.tile(values[:1], (60, 1)) for name, values in _METRICS.items()
  }
  writer = metric_writers.CsvWriter(path, (7, 8))
  writer.write(range(1, 61), range(1, 61), many)
  writer.close()
  whole = path.read_bytes()
  path.write_bytes(whole[:-5])
  for update in (40, 7):
    writer = metric_writers.CsvWriter(path, (7, 8), resume_after=update)
    rest = {name: values[update:] for name, values in many.items()}
    writer.write(range(update + 1, 61), range(update + 1, 61), rest)
    writer.close()
    assert path.read_bytes() == whole
  with pytest.raises(ValueError, match="ends before update 61"):
    metric_writers.CsvWriter(path, (7, 8), resume_after=61)
  writer = metric_writers.CsvWriter(path, (7, 8), resume_after=0)
  writer.close()
  assert path.read_bytes() == b""


def _read_events(path):
  """Records are (length u64, crc u32, payload, crc u32)."""
  data = path.read_bytes()
  while data:
    length = int.from_bytes(data[:8], "little")
    yield event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]


def test_tensorboard_has_a_run_for_each_seed(tmp_path):
  writer = metric_writers.TensorBoardWriter(tmp_path, seeds=(7, 8))
  writer.write([1, 2], [100, 200], _METRICS)
  writer.close()
  (path,) = (tmp_path / "seed_8").glob("events*")
  scalars = {
    (event.step, value.tag): value.simple_value
    for event in _read_events(path)
    for value in event.summary.value
  }
  assert set(scalars) == {
    (100, "loss"),
    (200, "loss"),
    (100, "episode_return_mean"),
  }
  np.testing.assert_allclose(scalars[200, "loss"], 0.4)


def test_wandb_logs_by_seed(tmp_path, monkeypatch):
  logged = []
  run = types.SimpleNamespace(
    log=lambda values, step: logged.append((step, values)), finish=lambda: None
  )
  fake = types.SimpleNamespace(init=lambda **_: run)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  writer = metric_writers.WandbWriter(tmp_path, (7, 8), "project", {})
  writer.write([1, 2], [100, 200], _METRICS)
  writer.close()
  assert logged[0] == (
    100,
    {"loss/seed_7": 0.1, "loss/seed_8": 0.2, "episode_return_mean/seed_8": 1.5},
  )


def test_wandb_missing_is_a_clear_error():
  metric_writers.check_wandb(None)
  if importlib.util.find_spec("wandb") is None:
    with pytest.raises(ValueError, match="wandb is not installed"):
      metric_writers.check_wandb("project")
