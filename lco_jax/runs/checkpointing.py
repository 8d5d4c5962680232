"""Checkpoints: pytrees of arrays on disk, complete and verified.

The processes of a job may save and restore one together: each writes and reads
the parts of arrays on its own devices, in a directory that all of them see.

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
from jax.experimental import multihost_utils

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
  """Checkpoints of one run, written by one process, or by all together.

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

  def save(
    self, step: int, tree: Any, notes: Mapping, together: bool = False
  ) -> None:
    """Writes a checkpoint, then removes all but the newest `keep`.

    Args:
      step: number of the checkpoint; an existing one is not rewritten.
      tree: pytree of NumPy arrays, or of arrays on devices.
      notes: plain values to store with it.
      together: whether all processes of a job call this at once, and see the
        directory; the first one writes the manifest, with its notes.

    Raises:
      CheckpointError: if it cannot be written; earlier checkpoints stay intact.
    """
    leads = not together or jax.process_index() == 0
    # The first alone lists them: it may be removing some meanwhile.
    exists = leads and step in self.steps()
    if together:
      exists = multihost_utils.broadcast_one_to_all(np.asarray(exists))
    if exists:
      return
    partial = self.directory / f"{_PARTIAL}{step}"
    try:
      if leads:
        self.directory.mkdir(exist_ok=True)
        for left_over in self.directory.glob(f"{_PARTIAL}*"):
          shutil.rmtree(left_over)
        partial.mkdir()
      _wait_for_all(together)
      leaves = _name_leaves(tree)
      # Save synchronously: the data is on disk afterwards, or this raises.
      with _make_checkpointer(together) as checkpointer:
        checkpointer.save(
          (partial / _ARRAYS).absolute(),
          args=ocp.args.StandardSave(_drop_empty(leaves)),
        )
      if leads:
        self._complete(step, leaves, notes)
    except Exception as error:  # Orbax raises many exception types.
      if leads:
        shutil.rmtree(partial, ignore_errors=True)
      raise CheckpointError(
        f"checkpoint {self.directory / str(step)} could not be written:"
        f" {_first_line(error)}"
      ) from error
    if leads:
      for old in self.steps()[: -self.keep]:
        self._remove(old)
    _wait_for_all(together)

  def _complete(
    self, step: int, leaves: Mapping[str, Any], notes: Mapping
  ) -> None:
    """Writes the manifest of a checkpoint and gives it its name."""
    partial = self.directory / f"{_PARTIAL}{step}"
    manifest = {
      "step": step,
      "fingerprint": self.fingerprint,
      "leaves": describe(leaves),
      "files": _hash_files(partial / _ARRAYS),
      "notes": dict(notes),
    }
    with open(partial / _MANIFEST, "w") as file:
      json.dump(manifest, file, indent=1)
      file.flush()
      os.fsync(file.fileno())
    partial.rename(self.directory / str(step))

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

  def restore(
    self, like: Any, step: int | None = None, together: bool = False
  ) -> tuple[int, Any, Any]:
    """Restores a checkpoint bit for bit.

    Args:
      like: pytree of NumPy arrays with the expected structure, shapes and
        dtypes, which also provides the leaves without elements; or of what
        `transfers.describe` returns, to read each part on its device.
      step: number of the checkpoint; None for the newest.
      together: whether all processes of a job call this at once, and see the
        directory.

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
      _check_files(path / _ARRAYS, expected, together)
    except (CheckpointError, KeyError, OSError, ValueError) as error:
      raise CheckpointError(
        f"checkpoint {path} is damaged: {_first_line(error)};"
        f" older ones: {older}"
      ) from error
    if manifest["fingerprint"] not in (self.fingerprint, *self.earlier):
      raise CheckpointError(f"checkpoint {path} is of another configuration")
    leaves = _name_leaves(like)
    for name, description in describe(leaves).items():
      if manifest["leaves"].get(name) != description:
        raise CheckpointError(
          f"checkpoint {path}: {name} is {manifest['leaves'].get(name)},"
          f" not {description}"
        )
    for name in manifest["leaves"].keys() - leaves.keys():
      raise CheckpointError(f"checkpoint {path}: {name} is not expected")
    _wait_for_all(together)  # One that found damage ends the job here.
    with _make_checkpointer(together) as checkpointer:
      restored = checkpointer.restore(
        (path / _ARRAYS).absolute(),
        args=ocp.args.StandardRestore(_drop_empty(leaves)),
      )
    values = [
      restored[name] if name in restored else _make_empty(leaf)
      for name, leaf in leaves.items()
    ]
    tree = jax.tree.unflatten(jax.tree.structure(like), values)
    return step, tree, manifest["notes"]


def _wait_for_all(together: bool) -> None:
  """Waits for all processes of a job, if they act together."""
  if together:
    multihost_utils.sync_global_devices("checkpoint")


def _make_checkpointer(together: bool) -> ocp.Checkpointer:
  """Makes a checkpointer of all processes, or of this one alone."""
  if together:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()}
  )
  return ocp.Checkpointer(
    ocp.StandardCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  )


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Flattens a pytree of arrays to {path: leaf}, as files hold it."""
  return {name: np.asarray(leaf) for name, leaf in _name_leaves(tree).items()}


def _name_leaves(tree: Any) -> dict[str, Any]:
  """Lists the leaves of a pytree by path.

  Arrays on devices, and descriptions of them, stay as they are.
  """
  kept = (jax.Array, jax.ShapeDtypeStruct)
  return {
    jax.tree_util.keystr(path): leaf
    if isinstance(leaf, kept)
    else np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _make_empty(like: Any) -> Any:
  """Makes an array without elements."""
  if not isinstance(like, jax.ShapeDtypeStruct):
    return like
  empty = np.zeros(like.shape, like.dtype)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: empty[index]
  )


def _drop_empty(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Drops arrays without elements, which Orbax rejects."""
  return {name: leaf for name, leaf in leaves.items() if leaf.size}


def describe(leaves: Mapping[str, Any]) -> dict[str, str]:
  """Describes dtype and shape of each of some arrays."""
  return {
    name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()
  }


def _hash_files(directory: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below a directory, which is synchronised to disk."""
  return {
    name: _hash_file(directory / name, sync=True)
    for name in _list_files(directory)
  }


def _check_files(
  directory: pathlib.Path, expected: Mapping[str, str], together: bool
) -> None:
  """Checks files against their SHA-256.

  Args:
    directory: of the files.
    expected: SHA-256 by relative path, of all files below it.
    together: whether each process of a job checks its share of the files.

  Raises:
    CheckpointError: naming a file that has changed, is missing or is new.
  """
  found, changed = _list_files(directory), "has changed since it was written"
  for name in sorted({*expected} ^ {*found}):
    raise CheckpointError(f"file {name} {changed}")
  # Shares of the manifest, which is the same for all.
  share = slice(jax.process_index(), None, jax.process_count())
  for name in sorted(expected)[share if together else slice(None)]:
    if _hash_file(directory / name) != expected[name]:
      raise CheckpointError(f"file {name} {changed}")


def _hash_file(path: pathlib.Path, sync: bool = False) -> str:
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sync:
      os.fsync(file.fileno())
  return digest


def _list_files(directory: pathlib.Path) -> list[str]:
  """Lists the relative paths of all files below a directory."""
  return sorted(
    str(path.relative_to(directory))
    for path in directory.rglob("*")
    if path.is_file()
  )


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), "") or type(error).__name__
