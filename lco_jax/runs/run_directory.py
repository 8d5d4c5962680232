"""The directory of one run: what a report needs, and nothing half-written.

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


class _Stored(dict):
  """A run's settings; to ask for one that it lacks is an error of input."""

  def __init__(self, path: pathlib.Path, settings: Mapping):
    super().__init__(settings)
    self._path = path

  def __missing__(self, name):
    raise ValueError(
      f"workdir {self._path}: config.json has no {name}; it is of another"
      " version"
    )


def check_unused(path: pathlib.Path) -> None:
  """Checks that a run can be written to a directory, without writing to it.

  Args:
    path: a directory that does not exist yet, or is empty.

  Raises:
    ValueError: if it holds files, is no directory, or cannot be written to.
  """
  if path.exists():
    if not path.is_dir():
      raise ValueError(f"workdir {path} is not a directory")
    if any(path.iterdir()):
      raise ValueError(f"workdir {path} is already in use; choose another")
  parent = path
  while not parent.exists():
    parent = parent.parent
  if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
    raise ValueError(f"workdir {path} cannot be written to")


def create(path: pathlib.Path, config: Mapping) -> None:
  """Creates the directory and writes the resolved configuration into it.

  Args:
    path: the directory.
    config: plain numbers, strings, lists and dicts.

  Raises:
    ValueError: as `check_unused`, if creating it fails, or if the
      configuration holds what JSON cannot.
  """
  check_unused(path)
  json.dumps(config, allow_nan=False)  # Raises before anything is made.
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", config)
  except OSError as error:
    raise ValueError(f"workdir {path} cannot be written to: {error}") from error


def read_config(path: pathlib.Path) -> dict:
  """Reads the configuration of a run that is to be resumed.

  Args:
    path: the run directory.

  Raises:
    ValueError: if it holds no run, or the file is damaged; and later, if a
      setting is asked for that the run lacks.
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
    raise ValueError(f"workdir {path}: config.json is no configuration")
  return _Stored(path, config)


def check_same_config(path: pathlib.Path, given: Mapping) -> None:
  """Checks that a run is resumed with the configuration that it has.

  Args:
    path: the run directory.
    given: the configuration, of plain values as JSON keeps them.

  Raises:
    ValueError: as `read_config`, or naming the first setting that differs.
  """
  stored = read_config(path)
  for name in sorted(stored.keys() | given.keys()):
    if stored.get(name) != given.get(name):
      raise ValueError(
        f"{name}: the run in {path} has {stored.get(name)!r},"
        f" not {given.get(name)!r}; it cannot be resumed so"
      )


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Holds a run directory for one process, which may then write to it.

  Args:
    path: the run directory, which exists.

  Raises:
    ValueError: if another process holds it, or it cannot be written to.
  """
  try:
    file = open(path / ".lock", "w")  # noqa: SIM115
  except OSError as error:
    raise ValueError(f"workdir {path} cannot be written to: {error}") from error
  with file:  # Closing it, in whatever way the process ends, lets go.
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ValueError(f"workdir {path} is in use by another process") from None
    yield


def in_use(path: pathlib.Path) -> bool:
  """Whether a process holds a run directory, which need not exist."""
  try:
    with open(path / ".lock") as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  return False


def write_json(path: pathlib.Path, content: Mapping) -> None:
  """Writes a JSON file whole or not at all."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
  partial.replace(path)


def read_metrics(
  path: pathlib.Path, names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Reads columns of a run's metrics.csv.

  Args:
    path: the run directory.
    names: columns.

  Returns:
    {name: float[updates, seeds]}, NaN for an empty cell; also "env_steps",
    float[updates].

  Raises:
    ValueError: if the file was cut off within an update.
  """
  columns = {name: [] for name in ("env_steps", "seed", *names)}
  with open(path / "metrics.csv", newline="") as file:
    for row in csv.DictReader(file):
      for name, values in columns.items():
        values.append(float(row[name] or "nan"))
  num_seeds = len(set(columns.pop("seed")))
  if len(columns["env_steps"]) % max(1, num_seeds):
    raise ValueError(f"{path / 'metrics.csv'} ends within an update")
  arrays = {k: np.reshape(v, (-1, num_seeds)) for k, v in columns.items()}
  arrays["env_steps"] = arrays["env_steps"][:, 0]
  return arrays
