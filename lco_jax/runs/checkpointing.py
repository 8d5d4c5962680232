"""Checkpoints: a pytree of arrays on disk, whole and unchanged or not at all.

Orbax writes the arrays; around it stands what it leaves to its user. A
checkpoint is written beside the others and renamed when complete, with a
manifest: the SHA-256 of every file, path, dtype and shape of every leaf, and
the fingerprint of the configuration. Nothing is restored that does not match.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_PARTIAL = "partial-"


class CheckpointError(RuntimeError):
  """A checkpoint cannot be written, or is not what it should be."""


def fingerprint(config: Mapping) -> str:
  """SHA-256 of a configuration of plain values, in hexadecimal digits."""
  text = json.dumps(config, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """The checkpoints of one run; only one process may write them.

  Attributes:
    directory: holds a directory for each step, named by its number.
    fingerprint: of the run's configuration.
    keep: how many of the newest stay.
  """

  directory: pathlib.Path
  fingerprint: str
  keep: int

  def steps(self) -> list[int]:
    """Steps that can be restored, ascending.

    Raises:
      CheckpointError: if something else than a checkpoint lies among them.
    """
    if not self.directory.exists():
      return []
    found = []
    for path in self.directory.iterdir():
      if path.name.startswith(_PARTIAL):
        continue  # A save that was cut short; the next one removes it.
      if (
        path.is_symlink()
        or not path.name.isdecimal()
        or not (path / _MANIFEST).is_file()
      ):
        raise CheckpointError(f"{path} is not a checkpoint; remove it")
      found.append(int(path.name))
    return sorted(found)

  def save(self, step: int, tree: Any, notes: Mapping) -> None:
    """Writes a checkpoint, then removes what is older than the newest `keep`.

    Args:
      step: its number; one that exists stays as it is.
      tree: pytree of NumPy arrays.
      notes: plain values to be kept with it.

    Raises:
      CheckpointError: if it cannot be written; earlier ones are unharmed.
    """
    if step in self.steps():
      return
    partial = self.directory / f"{_PARTIAL}{step}"
    try:
      self.directory.mkdir(exist_ok=True)
      for left_over in self.directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over)
      partial.mkdir()
      leaves = _named_leaves(tree)
      # Synchronous: it is on disk when this returns, or an error was raised.
      with _checkpointer() as checkpointer:
        checkpointer.save(
          (partial / _ARRAYS).absolute(),
          args=ocp.args.StandardSave(_without_empty(leaves)),
        )
      manifest = {
        "step": step,
        "fingerprint": self.fingerprint,
        "leaves": _descriptions(leaves),
        "files": _digests(partial / _ARRAYS, sync=True),
        "notes": dict(notes),
      }
      with open(partial / _MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
      partial.rename(self.directory / str(step))
    except Exception as error:  # Orbax passes on whatever its layers raise.
      shutil.rmtree(partial, ignore_errors=True)
      raise CheckpointError(
        f"checkpoint {self.directory / str(step)} could not be written:"
        f" {_first_line(error)}"
      ) from error
    for old in self.steps()[: -self.keep]:
      self._remove(old)

  def remove_after(self, step: int) -> None:
    """Removes what is newer than a step: a run that goes on from it."""
    for newer in self.steps():
      if newer > step:
        self._remove(newer)

  def _remove(self, step: int) -> None:
    # By way of a name that is never restored: half a directory is none.
    gone = self.directory / f"{_PARTIAL}{step}"
    (self.directory / str(step)).rename(gone)
    shutil.rmtree(gone)

  def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, Any]:
    """Reads a checkpoint back, bit for bit.

    Args:
      like: pytree of NumPy arrays with the structure, shapes and dtypes to
        expect; its values stand in for leaves without elements.
      step: which; None for the newest.

    Returns:
      (step, tree, notes).

    Raises:
      CheckpointError: if there is none, a file is damaged or missing, or it is
        of another configuration or structure.
    """
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      have = ", ".join(map(str, steps)) or "none"
      raise CheckpointError(
        f"{self.directory} has no checkpoint"
        f"{'' if step is None else f' {step}'}; there: {have}"
      )
    step = steps[-1] if step is None else step
    path = self.directory / str(step)
    older = ", ".join(str(s) for s in steps if s < step) or "none"
    try:
      manifest = json.loads((path / _MANIFEST).read_text())
      expected = manifest["files"]
      if manifest["step"] != step:
        raise CheckpointError(f"it is step {manifest['step']}")
      found = _digests(path / _ARRAYS, sync=False)
      for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
          raise CheckpointError(f"file {name} is not as it was written")
    except (CheckpointError, KeyError, OSError, ValueError) as error:
      raise CheckpointError(
        f"checkpoint {path} is damaged: {_first_line(error)};"
        f" older ones: {older}"
      ) from error
    if manifest["fingerprint"] != self.fingerprint:
      raise CheckpointError(f"checkpoint {path} is of another configuration")
    leaves = _named_leaves(like)
    for name, description in _descriptions(leaves).items():
      if manifest["leaves"].get(name) != description:
        raise CheckpointError(
          f"checkpoint {path}: {name} is {manifest['leaves'].get(name)},"
          f" not {description}"
        )
    for name in manifest["leaves"].keys() - leaves.keys():
      raise CheckpointError(f"checkpoint {path}: {name} is not expected")
    with _checkpointer() as checkpointer:
      restored = checkpointer.restore(
        (path / _ARRAYS).absolute(),
        args=ocp.args.StandardRestore(_without_empty(leaves)),
      )
    values = [restored.get(name, leaf) for name, leaf in leaves.items()]
    tree = jax.tree.unflatten(jax.tree.structure(like), values)
    return step, tree, manifest["notes"]


def _checkpointer() -> ocp.Checkpointer:
  """Only this process takes part: the others do not wait for it."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  )


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
  """Leaves by path. A flat dict is all that Orbax sees of the structure."""
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _without_empty(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Orbax refuses arrays without elements; there is nothing in them."""
  return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _descriptions(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {
    name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()
  }


def _digests(directory: pathlib.Path, sync: bool) -> dict[str, str]:
  """SHA-256 of every file below a directory, by relative path."""
  digests = {}
  for path in sorted(directory.rglob("*")):
    if path.is_file():
      with open(path, "rb") as file:
        digests[str(path.relative_to(directory))] = hashlib.file_digest(
          file, "sha256"
        ).hexdigest()
        if sync:
          os.fsync(file.fileno())
  return digests


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), "") or type(error).__name__
