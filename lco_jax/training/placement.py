"""Where a run lives: a mesh of devices, and the arrays on it.

A mesh has two axes, SEED_AXIS and DEVICE_AXIS, of which one has size 1. Devices
divide the seeds if they can, as seeds do not depend on each other.
Otherwise they divide each seed's streams, and gradients are summed over
devices. Neither changes what is computed.

The specs below say which axis of an array each mesh axis divides. A further
mesh axis that shards parameters needs specs here and in `make_mesh`, and sums
over it of gradients and norms in `program` and `update`.

The devices may be those of several processes. Every process must then make the
same calls in the same order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lco_jax import numerics, types
from lco_jax.training import cpu_backend

SEED_AXIS = "seeds"
DEVICE_AXIS = numerics.DEVICE_AXIS

EVERYWHERE = P()  # The same on all devices.
SEEDS = P(SEED_AXIS)  # [seeds, ...]
STREAMS = P(SEED_AXIS, DEVICE_AXIS)  # [seeds, N, ...]
ROLLOUTS = P(SEED_AXIS, None, DEVICE_AXIS)  # [seeds, T, N, ...]
STATE = types.LearnerState(
  params=SEEDS, opt_state=SEEDS, actor=STREAMS, key=SEEDS, update=SEEDS
)


def make_mesh(
  num_seeds: int, num_streams: int, devices: Sequence[jax.Device]
) -> Mesh:
  """Builds a mesh whose devices divide the seeds, or else the streams.

  Args:
    num_seeds: seeds of the run.
    num_streams: streams of each seed.
    devices: to use, of all processes; each has as many.

  Returns:
    A mesh with axes (SEED_AXIS, DEVICE_AXIS), a process' devices side by side.

  Raises:
    ValueError: if neither seeds nor streams divide over the devices.
  """
  if num_seeds % len(devices) == 0:
    shape = (len(devices), 1)
  elif num_streams % len(devices) == 0:
    shape = (1, len(devices))
  else:
    raise ValueError(
      f"num_envs or num_prompts {num_streams} does not divide over"
      f" {len(devices)} devices, nor does the number of learners, num_seeds"
      f" (times rates) {num_seeds}"
    )
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(np.reshape(ordered, shape), (SEED_AXIS, DEVICE_AXIS))


def compile(
  function: Callable,
  mesh: Mesh,
  in_specs: Any,
  out_specs: Any,
  *like: Any,
  donate_argnums: Sequence[int] = (),
  once: bool = False,
  long_reductions: bool = False,
) -> Callable:
  """Compiles a function of one device's share to run on all of a mesh.

  Args:
    function: of pytrees; runs under the mesh's axes.
    mesh: the devices.
    in_specs: a tuple with a spec, or pytree of specs, for each argument.
    out_specs: likewise for the result.
    *like: its arguments, whole, read for shapes and dtypes.
    donate_argnums: the arguments that it consumes.
    once: whether it will be called only once.
    long_reductions: whether it sums over thousands of rows.

  Returns:
    The function of whole arrays that are placed as the specs say.
  """
  mapped = jax.shard_map(
    function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  program = jax.jit(
    mapped,
    in_shardings=_shardings(mesh, in_specs),
    out_shardings=_shardings(mesh, out_specs),
    donate_argnums=donate_argnums,
  )
  options = cpu_backend.compiler_options(once, long_reductions)
  return program.lower(*like).compile(options)


def gather_seeds(tree: Any, axis: int) -> Any:
  """Gathers arrays of all seeds, at `axis`, on all devices of a program."""
  return jax.lax.all_gather(tree, SEED_AXIS, axis=axis, tiled=True)


def each_seed(function: Callable) -> Callable:
  """`jax.vmap` over the seeds of a device, cheaper where there is only one.

  An axis of size one is not free: to move it, XLA copies a whole model.
  """

  def mapped(*trees):
    if len(jax.tree.leaves(trees)[0]) > 1:
      return jax.vmap(function)(*trees)
    result = function(*jax.tree.map(lambda leaf: leaf[0], trees))
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), result)

  return mapped


def bind_device_axis(function: Callable) -> Callable:
  """Runs a function of one device's share as if there were no other device.

  It binds DEVICE_AXIS, with size 1.
  """

  def run(*args):
    grown = jax.tree.map(lambda x: x[None], args)
    result = jax.vmap(function, axis_name=DEVICE_AXIS)(*grown)
    return jax.tree.map(lambda x: x[0], result)

  return run


def to_devices(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Puts NumPy arrays on devices.

  Args:
    tree: the arrays; every process must have them whole.
    mesh: the devices.
    specs: sharding of the arrays: one spec for all, or a pytree of specs.
  """
  return jax.tree.map(
    lambda leaf, sharding: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    ),
    tree,
    jax.tree.broadcast(_shardings(mesh, specs), tree),
  )


def to_host(tree: Any) -> Any:
  """Brings arrays from devices to every process' host, whole, as NumPy's."""

  def read(leaf):
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(read, tree)


def put_local(tree: Any, mesh: Mesh, spec: P) -> Any:
  """Puts on this process' devices their block of arrays.

  Takes NumPy arrays as `read_local` returns them, and returns the whole arrays
  of all processes, which go where `spec` says.
  """
  sharding = NamedSharding(mesh, spec)
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


def _shardings(mesh: Mesh, specs: Any) -> Any:
  """A pytree of specs as one of shardings."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda node: isinstance(node, P),
  )
