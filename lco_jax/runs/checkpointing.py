"""Checkpoints: pytrees of arrays on disk, complete and verified.

Orbax writes the arrays. This module adds atomicity and verification: it writes
a checkpoint to a temporary directory, renames it when complete, and stores a
manifest with the SHA-256 of every file, path, dtype and shape of every leaf,
and the configuration's fingerprint. Restoring checks the whole manifest.
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
  """A checkpoint cannot be written, or does not match its manifest."""


def fingerprint(config: Mapping) -> str:
  """SHA-256 of a configuration with plain values, in hexadecimal digits."""
  text = json.dumps(config, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """Checkpoints of one run, written by one process only.

  Attributes:
    directory: contains a directory per step, named by the step's number.
    fingerprint: fingerprint of the run's configuration.
    keep: number of newest checkpoints to keep.
    earlier: fingerprints of configurations that this one goes on from.
  """

  directory: pathlib.Path
  fingerprint: str
  keep: int
  earlier: tuple[str, ...] = ()

  def steps(self) -> list[int]:
    """Lists the steps that can be restored, ascending.

    Raises:
      CheckpointError: if the directory contains anything but checkpoints.
    """
    if not self.directory.exists():
      return []
    found = []
    for path in self.directory.iterdir():
      if path.name.startswith(_PARTIAL):
        continue  # An interrupted save, which the next save removes.
      if (
        path.is_symlink()
        or not path.name.isdecimal()
        or not (path / _MANIFEST).is_file()
      ):
        raise CheckpointError(f"{path} is not a checkpoint; remove it")
      found.append(int(path.name))
    return sorted(found)

  def save(self, step: int, tree: Any, notes: Mapping) -> None:
    """Writes a checkpoint, then removes all but the newest `keep`.

    Args:
      step: number of the checkpoint; an existing one is not rewritten.
      tree: pytree of NumPy arrays.
      notes: plain values to store with it.

    Raises:
      CheckpointError: if it cannot be written; earlier checkpoints stay intact.
    """
    if step in self.steps():
      return
    partial = self.directory / f"{_PARTIAL}{step}"
    try:
      self.directory.mkdir(exist_ok=True)
      for left_over in self.directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over)
      partial.mkdir()
      leaves = flatten(tree)
      # Save synchronously: the data is on disk afterwards, or this raises.
      with _make_checkpointer() as checkpointer:
        checkpointer.save(
          (partial / _ARRAYS).absolute(),
          args=ocp.args.StandardSave(_drop_empty(leaves)),
        )
      manifest = {
        "step": step,
        "fingerprint": self.fingerprint,
        "leaves": describe(leaves),
        "files": _hash_files(partial / _ARRAYS, sync=True),
        "notes": dict(notes),
      }
      with open(partial / _MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
      partial.rename(self.directory / str(step))
    except Exception as error:  # Orbax raises many exception types.
      shutil.rmtree(partial, ignore_errors=True)
      raise CheckpointError(
        f"checkpoint {self.directory / str(step)} could not be written:"
        f" {_first_line(error)}"
      ) from error
    for old in self.steps()[: -self.keep]:
      self._remove(old)

  def remove_after(self, step: int) -> None:
    """Removes all checkpoints after a step, from which a run continues."""
    for newer in self.steps():
      if newer > step:
        self._remove(newer)

  def _remove(self, step: int) -> None:
    # Rename first, so an interrupted removal leaves no damaged checkpoint.
    gone = self.directory / f"{_PARTIAL}{step}"
    (self.directory / str(step)).rename(gone)
    shutil.rmtree(gone)

  def restore(self, like: Any, step: int | None = None) -> tuple[int, Any, Any]:
    """Restores a checkpoint bit for bit.

    Args:
      like: pytree of NumPy arrays with the expected structure, shapes and
        dtypes; also provides the leaves without elements.
      step: number of the checkpoint; None for the newest.

    Returns:
      (step, tree, notes).

    Raises:
      CheckpointError: if there is no such checkpoint, a file is damaged or
        missing, or the configuration or structure differs.
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
      found = _hash_files(path / _ARRAYS, sync=False)
      for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
          raise CheckpointError(f"file {name} has changed since it was written")
    except (CheckpointError, KeyError, OSError, ValueError) as error:
      raise CheckpointError(
        f"checkpoint {path} is damaged: {_first_line(error)};"
        f" older ones: {older}"
      ) from error
    if manifest["fingerprint"] not in (self.fingerprint, *self.earlier):
      raise CheckpointError(f"checkpoint {path} is of another configuration")
    leaves = flatten(like)
    for name, description in describe(leaves).items():
      if manifest["leaves"].get(name) != description:
        raise CheckpointError(
          f"checkpoint {path}: {name} is {manifest['leaves'].get(name)},"
          f" not {description}"
        )
    for name in manifest["leaves"].keys() - leaves.keys():
      raise CheckpointError(f"checkpoint {path}: {name} is not expected")
    with _make_checkpointer() as checkpointer:
      restored = checkpointer.restore(
        (path / _ARRAYS).absolute(),
        args=ocp.args.StandardRestore(_drop_empty(leaves)),
      )
    values = [restored.get(name, leaf) for name, leaf in leaves.items()]
    tree = jax.tree.unflatten(jax.tree.structure(like), values)
    return step, tree, manifest["notes"]


def _make_checkpointer() -> ocp.Checkpointer:
  """Makes a checkpointer that does not synchronise with other processes."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  )


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Flattens a pytree of arrays to {path: leaf}, as files hold it."""
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _drop_empty(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Drops arrays without elements, which Orbax rejects."""
  return {name: leaf for name, leaf in leaves.items() if leaf.size}


def describe(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Describes dtype and shape of each of some arrays."""
  return {
    name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()
  }


def _hash_files(directory: pathlib.Path, sync: bool) -> dict[str, str]:
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
