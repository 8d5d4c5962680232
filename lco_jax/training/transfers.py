"""Moving arrays between hosts, devices and processes.

A process reads, places and brings back the parts of its own devices. What is
done between processes, all of them must call in the same order.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lco_jax.training import placement


class Repeated:
  """One array for all seeds, [seeds, ...], of which no copy is made.

  Attributes:
    array: of one seed; parts of it are read as those of a NumPy array.
    num_seeds: of the run.
  """

  def __init__(self, array: Any, num_seeds: int):
    self.array, self.num_seeds = array, num_seeds

  @property
  def shape(self) -> tuple[int, ...]:
    """[seeds, ...]."""
    return (self.num_seeds, *self.array.shape)

  @property
  def dtype(self) -> np.dtype:
    """Type of its numbers."""
    return self.array.dtype

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    seeds, *rest = index
    part = self.array[tuple(rest)]
    count = len(range(self.num_seeds)[seeds])
    return np.broadcast_to(part, (count, *part.shape))


def to_devices(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Puts arrays of the host on devices.

  Args:
    tree: the arrays, or what has a shape and parts like theirs; a process
      reads the parts of its own devices.
    mesh: the devices.
    specs: sharding of the arrays: one spec for all, or a pytree of specs.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    ),
    tree,
    jax.tree.broadcast(placement.make_shardings(mesh, specs), tree),
  )


def describe(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Describes arrays on a mesh: their shapes, dtypes and shardings.

  Args:
    tree: of shapes and dtypes.
    mesh: the devices.
    specs: as of `to_devices`.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    jax.tree.broadcast(placement.make_shardings(mesh, specs), tree),
  )


def take_seed(params: Any, seed: int, mesh: Mesh) -> Any:
  """Takes a seed's parameters from those of all seeds, where they are.

  Args:
    params: pytree of [seeds, ...] on a mesh that divides it.
    seed: position of the seed.
    mesh: the devices.
  """
  specs = _drop_seeds(placement.make_param_specs(params, mesh))
  take = jax.jit(
    lambda tree: jax.tree.map(lambda leaf: leaf[seed], tree),
    out_shardings=placement.make_shardings(mesh, specs),
  )
  return take(params)


def place_params(params: Any, mesh: Mesh) -> Any:
  """Places the parameters of one seed on a mesh that divides them.

  Args:
    params: arrays of which parts can be read, on the host or in a file.
    mesh: the devices.
  """
  shapes = jax.tree.map(lambda leaf: Repeated(leaf, 1), params)
  specs = _drop_seeds(placement.make_param_specs(shapes, mesh))
  return to_devices(params, mesh, specs)


def _drop_seeds(specs: Any) -> Any:
  """Specs of one seed's arrays, from those of [seeds, ...]."""
  return jax.tree.map(
    lambda spec: P(*spec[1:]), specs, is_leaf=placement.is_spec
  )


def to_host(tree: Any) -> Any:
  """Brings arrays from devices to every process' host, whole, as NumPy's.

  Arrays that are on the host stay as they are.
  """

  def read(leaf):
    if isinstance(leaf, np.ndarray):
      return leaf
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(read, tree)


def put_local(tree: Any, mesh: Mesh, spec: P) -> Any:
  """Puts on this process' devices their block of arrays.

  Takes NumPy arrays as `read_local` returns them, and returns the whole arrays
  of all processes, which go where `spec` says.
  """
  sharding = placement.make_shardings(mesh, spec)
  return jax.tree.map(
    functools.partial(jax.make_array_from_process_local_data, sharding), tree
  )


def read_local(tree: Any) -> Any:
  """Reads the block of arrays that is on this process' devices, as NumPy's."""

  def read(leaf):
    block = multihost_utils.global_array_to_host_local_array(
      leaf, leaf.sharding.mesh, leaf.sharding.spec
    )
    return np.asarray(block)

  return jax.tree.map(read, tree)


def any_process(*conditions: bool) -> tuple[bool, ...]:
  """Tells of each condition whether it is true in at least one process.

  All processes must call it at the same point of the program.

  Args:
    *conditions: of this process.

  Returns:
    As many booleans, the same in all processes.
  """
  if jax.process_count() == 1:
    return conditions
  everywhere = multihost_utils.process_allgather(np.array(conditions))
  return tuple(everywhere.any(axis=0).tolist())


def all_agree(numbers: Sequence[int]) -> bool:
  """Whether all processes have the same numbers; all must call it."""
  told = ",".join(map(str, numbers)).encode()
  digest = np.frombuffer(hashlib.sha256(told).digest(), np.uint8)
  if jax.process_count() == 1:
    return True
  everywhere = multihost_utils.process_allgather(digest)
  return bool((everywhere == digest).all())


def from_first_process(tree: Any) -> Any:
  """NumPy arrays of the first process, bit for bit, in every process.

  Args:
    tree: NumPy arrays; the others' are read for shapes and dtypes only.
  """
  if jax.process_count() == 1:
    return tree
  # As bytes: what others add to it in a sum is 0, but −0.0 + 0.0 is not −0.0.
  sent = multihost_utils.broadcast_one_to_all(
    jax.tree.map(lambda x: np.frombuffer(x.tobytes(), np.uint8), tree)
  )
  return jax.tree.map(
    lambda x, own: np.frombuffer(x.tobytes(), own.dtype).reshape(own.shape),
    sent,
    tree,
  )
