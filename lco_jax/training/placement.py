"""Where a run lives: a mesh of devices, and the arrays on it.

A mesh has up to four axes. Devices along SEED_AXIS divide the seeds, which do
not depend on each other; along DATA_AXIS and FSDP_AXIS they divide each seed's
streams, whose gradients are summed; along FSDP_AXIS and TENSOR_AXIS they divide
the parameters (see `networks.partitioning`). None changes what is computed.

A program sees one device's share along SEED_AXIS and DATA_AXIS, and sums over
them by name. Along the other two it is written as if for one device, and XLA's
partitioner divides it.

The specs below say which axis of an array each mesh axis divides.

The devices may be those of several processes. Every process must then make the
same calls in the same order.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lco_jax import checks, numerics, types
from lco_jax.networks import partitioning
from lco_jax.training import cpu_backend

SEED_AXIS = "seeds"
DATA_AXIS = numerics.DATA_AXIS

# The names of all axes, in their order.
AXES = (SEED_AXIS, DATA_AXIS, *partitioning.AXES)

# Axes that a mesh does not have are left out of a spec.
_DATA = (DATA_AXIS, partitioning.FSDP_AXIS)
EVERYWHERE = P()  # The same on all devices.
SEEDS = P(SEED_AXIS)  # [seeds, ...]
STREAMS = P(SEED_AXIS, _DATA)  # [seeds, N, ...]
ROLLOUTS = P(SEED_AXIS, None, _DATA)  # [seeds, T, N, ...]
STATE = types.LearnerState(
  params=SEEDS, opt_state=SEEDS, actor=STREAMS, key=SEEDS, update=SEEDS
)


def make_mesh(
  num_seeds: int,
  num_streams: int,
  devices: Sequence[jax.Device],
  sizes: Mapping[str, int] | None = None,
) -> Mesh:
  """Builds a mesh.

  Args:
    num_seeds: seeds of the run.
    num_streams: streams of each seed.
    devices: to use, of all processes; each has as many.
    sizes: devices along each of AXES; None lets devices divide the seeds, or
      else the streams.

  Returns:
    A mesh with axes (SEED_AXIS, DATA_AXIS), and the other AXES if one of them
    has more than one device; a process' devices lie side by side.

  Raises:
    ValueError: if seeds or streams do not divide over the devices.
  """
  if sizes is None:
    sizes = _choose_sizes(num_seeds, num_streams, len(devices))
  check_sizes(sizes, len(devices), num_seeds, num_streams)
  names = AXES if any(sizes[axis] > 1 for axis in AXES[2:]) else AXES[:2]
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  shape = [sizes[axis] for axis in names]
  return Mesh(np.reshape(ordered, shape), names)


def divides_parameters(sizes: Mapping[str, int]) -> bool:
  """Whether devices hold parts of the parameters.

  Args:
    sizes: devices along the axes of a mesh, such as its `shape`.
  """
  return any(sizes.get(axis, 1) > 1 for axis in partitioning.AXES)


def is_divided(params: Any) -> bool:
  """Whether arrays lie on a mesh that divides parameters; not on the host."""
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  if not isinstance(sharding, NamedSharding):
    return False
  return divides_parameters(sharding.mesh.shape)


def count_data_parts(mesh: Mesh) -> int:
  """Counts the devices that divide a seed's streams."""
  return math.prod(dict(mesh.shape).get(axis, 1) for axis in _DATA)


def parse_sizes(text: str) -> dict[str, int]:
  """Reads devices along the axes of a mesh from "seeds:1,data:8,fsdp:8".

  An axis that is left out has one device.

  Raises:
    ValueError: naming the part that is wrong.
  """
  sizes = {}
  for part in filter(None, text.split(",")):
    name, colon, size = (word.strip() for word in part.partition(":"))
    if not colon or not size.isdecimal() or int(size) < 1:
      raise ValueError(
        f"mesh: want AXIS:SIZE,... such as data:2,fsdp:4, got {part!r}"
      )
    if name not in AXES:
      raise ValueError(
        f"mesh: unknown axis {name!r}{checks.suggest(name, AXES)}; known:"
        f" {', '.join(AXES)}"
      )
    if name in sizes:
      raise ValueError(f"mesh: {name} is there twice")
    sizes[name] = int(size)
  return dict.fromkeys(AXES, 1) | sizes


def check_sizes(
  sizes: Mapping[str, int], num_devices: int, num_seeds: int, num_streams: int
) -> None:
  """Checks that a mesh has all devices, and divides seeds and streams.

  Raises:
    ValueError: if it does not.
  """
  product = math.prod(sizes.values())
  if product != num_devices:
    told = ",".join(f"{name}:{size}" for name, size in sizes.items())
    raise ValueError(
      f"mesh: {told} has {product} devices, but there are {num_devices}"
    )
  several = [axis for axis in partitioning.AXES if sizes[axis] > 1]
  if len(several) > 1 and max(sizes[SEED_AXIS], sizes[DATA_AXIS]) > 1:
    raise ValueError(  # XLA ends the process, jax 0.10.
      "mesh: where fsdp and tensor both have several devices, seeds and data"
      " must be 1; let fsdp take the devices of data"
    )
  if num_seeds % sizes[SEED_AXIS]:
    raise ValueError(
      f"mesh: seeds:{sizes[SEED_AXIS]} does not divide the number of learners,"
      f" num_seeds (times rates) {num_seeds}"
    )
  shards = math.prod(sizes[axis] for axis in _DATA)
  if num_streams % shards:
    raise ValueError(
      f"mesh: data × fsdp, {shards}, does not divide num_prompts {num_streams}"
    )


def _choose_sizes(
  num_seeds: int, num_streams: int, num_devices: int
) -> dict[str, int]:
  """Lets devices divide the seeds, or else the streams."""
  sizes = dict.fromkeys(AXES, 1)
  if num_seeds % num_devices == 0:
    return sizes | {SEED_AXIS: num_devices}
  if num_streams % num_devices == 0:
    return sizes | {DATA_AXIS: num_devices}
  raise ValueError(
    f"num_envs or num_prompts {num_streams} does not divide over"
    f" {num_devices} devices, nor does the number of learners, num_seeds"
    f" (times rates) {num_seeds}"
  )


def make_param_specs(tree: Any, mesh: Mesh) -> Any:
  """Makes the specs of parameters, or of an optimizer's state.

  Args:
    tree: of arrays [seeds, ...], or what has their shapes.
    mesh: that they are for.
  """
  sizes = dict(mesh.shape)

  def make_spec(path, leaf):
    axes = [SEED_AXIS, *partitioning.make_spec(path, leaf.shape[1:], sizes)]
    while axes[-1] is None:
      axes.pop()
    return P(*axes)

  return jax.tree_util.tree_map_with_path(make_spec, tree)


def make_state_specs(state: types.LearnerState, mesh: Mesh) -> Any:
  """Makes the specs of a learner state, or of what has its shapes."""
  params, opt_state = make_param_specs((state.params, state.opt_state), mesh)
  return dataclasses.replace(STATE, params=params, opt_state=opt_state)


class Traced(NamedTuple):
  """A traced function of one device's share, that can be compiled.

  Attributes:
    stage: as JAX knows it; has the `jaxpr`.
    options: of the compiler.
  """

  stage: jax.stages.Traced
  options: Mapping[str, Any]

  def compile(self) -> Callable:
    """Compiles it: a function of whole arrays, placed as the specs say."""
    return self.stage.lower().compile(dict(self.options))


def trace(
  function: Callable,
  mesh: Mesh,
  in_specs: Any,
  out_specs: Any,
  *like: Any,
  donate_argnums: Sequence[int] = (),
  once: bool = False,
  long_reductions: bool = False,
) -> Traced:
  """Traces a function of one device's share to run on all of a mesh.

  Args:
    function: of pytrees; runs under the mesh's axes.
    mesh: the devices.
    in_specs: a tuple with a spec, or pytree of specs, for each argument.
    out_specs: likewise for the result.
    *like: its arguments, whole, read for shapes and dtypes.
    donate_argnums: the arguments that it consumes.
    once: whether it will be called only once.
    long_reductions: whether it sums over thousands of rows.
  """
  program = jax.jit(
    _divide(function, mesh, in_specs, out_specs),
    in_shardings=make_shardings(mesh, in_specs),
    out_shardings=make_shardings(mesh, out_specs),
    donate_argnums=donate_argnums,
  )
  options = {}
  if mesh.devices.flat[0].platform == "cpu":
    options = cpu_backend.compiler_options(once, long_reductions)
  return Traced(program.trace(*like), options)


def compile(*args: Any, **options: Any) -> Callable:
  """Compiles what `trace` traces; arguments are the same."""
  return trace(*args, **options).compile()


def find_shapes(
  function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, *like: Any
) -> Any:
  """Finds the shapes of what `compile`'s function returns.

  Arguments are those of `compile`.
  """
  return jax.eval_shape(_divide(function, mesh, in_specs, out_specs), *like)


def _divide(
  function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable:
  """A function of one device's share as one of whole arrays."""
  named = (SEED_AXIS, DATA_AXIS)
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=_select_axes(in_specs, named),
    out_specs=_select_axes(out_specs, named),
    axis_names=set(named),
    check_vma=False,
  )


def gather_seeds(tree: Any, axis: int) -> Any:
  """Gathers arrays of all seeds, at `axis`, on all devices of a program."""
  if jax.lax.axis_size(SEED_AXIS) == 1:
    return tree
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

  It binds DATA_AXIS, with size 1.
  """

  def run(*args):
    grown = jax.tree.map(lambda x: x[None], args)
    result = jax.vmap(function, axis_name=DATA_AXIS)(*grown)
    return jax.tree.map(lambda x: x[0], result)

  return run


def find_mesh(tree: Any) -> Mesh:
  """Finds the mesh that arrays are placed on."""
  return jax.tree.leaves(tree)[0].sharding.mesh


def make_shardings(mesh: Mesh, specs: Any) -> Any:
  """Makes shardings of a pytree of specs."""
  return jax.tree.map(
    functools.partial(NamedSharding, mesh),
    _select_axes(specs, mesh.axis_names),
    is_leaf=is_spec,
  )


def is_spec(node: Any) -> bool:
  """Whether a node of a pytree is a spec."""
  return isinstance(node, P)


def _select_axes(specs: Any, names: Sequence[str]) -> Any:
  """Leaves out of a pytree of specs all axes that have other names."""

  def select(entry):
    if isinstance(entry, tuple):
      return tuple(name for name in entry if name in names) or None
    return entry if entry in names else None

  return jax.tree.map(
    lambda spec: P(*map(select, spec)),
    specs,
    is_leaf=is_spec,
  )
