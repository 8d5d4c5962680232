"""Directory of a run, with all files of a report and no partial files.

config.json  metrics.csv  tensorboard/  checkpoints/  summary.json
learning_curve.png
"""

import contextlib
import csv
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

PICTURE = "learning_curve.png"
# Columns of metrics.csv that say where in a run its metrics are from.
_PLACE = ("update", "env_steps", "seed")


class _StoredConfig(dict):
  """A run's settings; a missing one raises ValueError as wrong user input."""

  def __init__(self, path: pathlib.Path, settings: Mapping):
    super().__init__(settings)
    self._path = path

  def __or__(self, other):
    return _StoredConfig(self._path, {**self, **other})

  def __missing__(self, name):
    raise ValueError(
      f"workdir {self._path}: config.json has no {name}; another version wrote"
      " it"
    )


def check_unused(path: pathlib.Path) -> None:
  """Checks that a new run can use a directory, without writing to it.

  Args:
    path: a directory that is empty or does not exist yet.

  Raises:
    ValueError: if it contains files, is not a directory or is not writable.
  """
  if path.exists():
    if not path.is_dir():
      raise ValueError(f"workdir {path} is not a directory")
    if any(path.iterdir()):
      raise ValueError(
        f"workdir {path} is already in use; choose another, or delete it"
      )
  parent = path
  while not parent.exists():
    parent = parent.parent
  if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
    raise ValueError(f"workdir {path} cannot be written to")


def create(path: pathlib.Path, config: Mapping) -> None:
  """Creates the directory and writes the resolved configuration to it.

  Args:
    path: the directory.
    config: plain numbers, strings, lists and dicts.

  Raises:
    ValueError: as `check_unused`, if the directory cannot be created, or if
      JSON cannot represent the configuration.
  """
  check_unused(path)
  json.dumps(config, allow_nan=False)  # Raises before creating anything.
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config)
  except OSError as error:
    raise ValueError(f"workdir {path} cannot be written to: {error}") from error


def read_config(path: pathlib.Path) -> dict:
  """Reads the configuration of an existing run.

  Args:
    path: the run directory.

  Returns:
    The settings; looking up one that is missing raises a ValueError.

  Raises:
    ValueError: if there is no run or the file is damaged.
  """
  try:
    config = json.loads((path / "config.json").read_text())
  except FileNotFoundError:
    raise ValueError(
      f"workdir {path} holds no run to resume: no config.json"
    ) from None
  except (OSError, ValueError) as error:
    raise ValueError(f"workdir {path}: config.json: {error}") from error
  if not isinstance(config, dict):
    raise ValueError(f"workdir {path}: config.json is not a configuration")
  return _StoredConfig(path, config)


def check_same_config(path: pathlib.Path, given: Mapping) -> None:
  """Checks that a resumed run keeps its configuration.

  Args:
    path: the run directory.
    given: the configuration, with plain values as JSON stores them.

  Raises:
    ValueError: as `read_config`, or naming the first setting that differs.
  """
  stored = read_config(path)
  if "extended_from" in stored and "extended_from" not in given:
    raise ValueError(
      f"the run in {path} was extended; resume it with --resume and --workdir"
      " alone"
    )
  for name in sorted(stored.keys() | given.keys()):
    if stored.get(name) != given.get(name):
      raise ValueError(
        f"{name}: the run in {path} has {stored.get(name)!r},"
        f" not {given.get(name)!r}; resume it with its own settings"
      )


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
  """Locks a run directory for this process, which may then write to it.

  Args:
    path: the existing run directory.

  Raises:
    ValueError: if another process has locked it, or it is not writable.
  """
  try:
    file = open(path / ".lock", "w")  # noqa: SIM115
  except OSError as error:
    raise ValueError(f"workdir {path} cannot be written to: {error}") from error
  with file:  # Closing it releases the lock, also when the process dies.
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ValueError(f"workdir {path} is in use by another process") from None
    yield


def in_use(path: pathlib.Path) -> bool:
  """Whether a process has locked a run directory, which need not exist."""
  try:
    with open(path / ".lock") as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


def write_json(path: pathlib.Path, content: Mapping) -> None:
  """Writes a JSON file atomically."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
  partial.replace(path)


def read_metrics(
  path: pathlib.Path, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads columns of a run's metrics.csv.

  Args:
    path: the run directory.
    names: columns; None for all metrics.

  Returns:
    {name: float[updates, seeds]}, NaN for an empty cell; and "env_steps",
    float[updates].

  Raises:
    ValueError: if the file ends within an update.
  """
  with open(path / "metrics.csv", newline="") as file:
    rows = csv.DictReader(file)
    if names is None:
      names = [name for name in rows.fieldnames or () if name not in _PLACE]
    columns = {name: [] for name in ("env_steps", "seed", *names)}
    for row in rows:
      for name, values in columns.items():
        values.append(float(row[name] or "nan"))
  num_seeds = len(set(columns.pop("seed")))
  if len(columns["env_steps"]) % max(1, num_seeds):
    raise ValueError(f"{path / 'metrics.csv'} ends within an update")
  arrays = {k: np.reshape(v, (-1, num_seeds)) for k, v in columns.items()}
  arrays["env_steps"] = arrays["env_steps"][:, 0]
  return arrays
