"""Where a run lives: how seeds and streams are dealt to devices.

Devices divide the seeds if they can, for seeds have nothing to tell each other.
Otherwise every device holds all seeds and a share of each seed's streams, and
gradients are summed over devices. Neither changes what is computed.

The devices may be those of several processes. All processes then run the same
program: whatever is dealt, compiled, called or collected here is so by all.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lco_jax import numerics
from lco_jax.training import cpu_backend

Array = jax.Array
DEVICE_AXIS = numerics.DEVICE_AXIS
# Names the devices where they divide the seeds, and DEVICE_AXIS has size 1.
_SEED_AXIS = "seed_shards"


@dataclasses.dataclass(frozen=True)
class Placement:
  """What each device holds; from `place`.

  Attributes:
    devices: all that take part, those of a process side by side.
    num_shards: how many devices divide one seed's streams: all, or 1 where
      devices divide the seeds.
  """

  devices: tuple[jax.Device, ...]
  num_shards: int

  @property
  def divides_seeds(self) -> bool:
    """Whether devices hold different seeds."""
    return self.num_shards < len(self.devices)

  @property
  def local_devices(self) -> slice:
    """Which of the devices are this process' own."""
    own = [
      index
      for index, device in enumerate(self.devices)
      if device.process_index == jax.process_index()
    ]
    return slice(own[0], own[-1] + 1)

  def compile(
    self,
    function: Callable,
    *like: Any,
    donate_argnums=(),
    once: bool = False,
    long_reductions: bool = False,
  ) -> Callable:
    """Maps a function of one device's share over the devices, and compiles it.

    Args:
      function: of pytrees; runs under an axis DEVICE_AXIS of size num_shards.
      *like: its arguments [devices, ...], read for shapes and dtypes.
      donate_argnums: as in `jax.pmap`.
      once: whether it will be called only once.
      long_reductions: whether it sums over thousands of rows.

    Returns:
      The function of pytrees of arrays [devices, ...] placed by `put` or `like`
      the results of others.
    """
    mapped = jax.pmap(
      alone(function) if self.divides_seeds else function,
      axis_name=self._axis,
      devices=self.devices,
      donate_argnums=donate_argnums,
    )
    # Called by itself, it would want and return each process' devices alone.
    return mapped.lower(*like).compile(
      cpu_backend.compiler_options(once, long_reductions)
    )

  def all_seeds(self, tree: Any, axis: int) -> Any:
    """Inside a mapped function: tells all devices what each seed came to.

    Args:
      tree: arrays with the seeds of this device at `axis`.
      axis: of the seeds.

    Returns:
      The arrays with all seeds at `axis`, the same on every device.
    """
    if not self.divides_seeds:
      return tree
    return jax.lax.all_gather(tree, _SEED_AXIS, axis=axis, tiled=True)

  def deal(self, array: np.ndarray) -> np.ndarray:
    """[seeds, ...] → [devices, seeds per device, ...]."""
    num_devices = len(self.devices)
    if self.divides_seeds:
      return np.reshape(array, (num_devices, -1, *array.shape[1:]))
    return np.broadcast_to(array, (num_devices, *array.shape))

  def deal_streams(self, array: np.ndarray) -> np.ndarray:
    """[seeds, streams, ...] → [devices, seeds here, streams here, ...]."""
    if self.divides_seeds:
      return self.deal(array)
    return np.stack(np.split(array, len(self.devices), axis=1))

  def put(self, tree: Any) -> Any:
    """Puts on devices what all processes dealt alike, [devices, ...]."""
    return jax.tree.map(
      lambda whole: jax.make_array_from_callback(
        whole.shape, self._sharding, lambda index: whole[index]
      ),
      tree,
    )

  def put_local(self, tree: Any) -> Any:
    """Puts on this process' devices what is theirs.

    Args:
      tree: arrays [local devices, ...].

    Returns:
      Arrays [devices, ...] with what all processes put.
    """
    return jax.tree.map(
      lambda own: jax.make_array_from_process_local_data(
        self._sharding, own, (len(self.devices), *own.shape[1:])
      ),
      tree,
    )

  def local(self, tree: Any) -> Any:
    """Reads what is on this process' devices: undoes `put_local`."""

    def read(leaf):
      shards = sorted(leaf.addressable_shards, key=lambda s: s.index[0].start)
      return np.concatenate([shard.data for shard in shards])

    return jax.tree.map(read, tree)

  def common(self, tree: Any) -> Any:
    """Reads what all devices agree on: [devices, ...] → NumPy [...]."""
    return jax.tree.map(
      lambda leaf: np.asarray(leaf.addressable_data(0))[0], tree
    )

  def collect_seeds(self, tree: Any) -> Any:
    """Brings what all devices of a seed agree on to every process' host.

    Args:
      tree: arrays [devices, seeds here, ...].

    Returns:
      NumPy arrays [seeds, ...].
    """
    if not self.divides_seeds:
      return self.common(tree)
    return jax.tree.map(np.concatenate, self._gather(tree))

  def collect_streams(self, tree: Any, axis: int = 1) -> Any:
    """Brings what is a stream's own to every process' host.

    Args:
      tree: arrays [devices, seeds here, ..., streams here, ...].
      axis: of the streams in the result.

    Returns:
      NumPy arrays [seeds, ..., streams, ...].
    """
    axis = 0 if self.divides_seeds else axis
    return jax.tree.map(
      lambda shards: np.concatenate(shards, axis), self._gather(tree)
    )

  def _gather(self, tree: Any) -> Any:
    """Arrays [devices, ...] as NumPy arrays, whole in every process."""
    if jax.process_count() == 1:
      return jax.tree.map(np.asarray, tree)
    everywhere = NamedSharding(self._sharding.mesh, PartitionSpec())
    return jax.tree.map(
      lambda leaf: np.asarray(leaf.addressable_data(0)),
      _resharded(tree, everywhere),
    )

  @property
  def _axis(self) -> str:
    return _SEED_AXIS if self.divides_seeds else DEVICE_AXIS

  @functools.cached_property
  def _sharding(self) -> NamedSharding:
    """Of arrays [devices, ...]."""
    mesh = Mesh(np.array(self.devices), (self._axis,))
    return NamedSharding(mesh, PartitionSpec(self._axis))


def each_seed(function: Callable) -> Callable:
  """`jax.vmap` over the seeds of a device, cheaper where there is only one.

  An axis of size one is not free: to move it, XLA copies a whole model. (Where
  devices divide several seeds, `alone` keeps such an axis.)

  Args:
    function: of pytrees of one seed.

  Returns:
    The function of pytrees [seeds, ...].
  """

  def mapped(*trees):
    if len(jax.tree.leaves(trees)[0]) > 1:
      return jax.vmap(function)(*trees)
    result = function(*jax.tree.map(lambda leaf: leaf[0], trees))
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), result)

  return mapped


def alone(function: Callable) -> Callable:
  """Makes one device's share all there is: binds DEVICE_AXIS with size 1.

  Args:
    function: of pytrees, written to run under an axis DEVICE_AXIS.

  Returns:
    The function of the same pytrees, which needs no such axis around it.
  """

  def run(*args):
    grown = jax.tree.map(lambda x: x[None], args)
    result = jax.vmap(function, axis_name=DEVICE_AXIS)(*grown)
    return jax.tree.map(lambda x: x[0], result)

  return run


def place(
  num_seeds: int, num_streams: int, devices: Sequence[jax.Device]
) -> Placement:
  """Chooses what the devices divide.

  Args:
    num_seeds: seeds of the run.
    num_streams: streams of each seed.
    devices: to use, of all processes; each has as many.

  Raises:
    ValueError: if neither seeds nor streams divide over the devices.
  """
  ordered = tuple(sorted(devices, key=lambda d: (d.process_index, d.id)))
  if num_seeds % len(devices) == 0:
    return Placement(ordered, num_shards=1)
  if num_streams % len(devices) == 0:
    return Placement(ordered, num_shards=len(devices))
  raise ValueError(
    f"num_envs or num_prompts {num_streams} does not divide over"
    f" {len(devices)} devices, nor does the number of learners, num_seeds"
    f" (times rates) {num_seeds}"
  )


def any_process(*questions: bool) -> tuple[bool, ...]:
  """Whether the answer to each question is yes in any process.

  All processes must ask, at the same point.
  """
  if jax.process_count() == 1:
    return questions
  answers = multihost_utils.process_allgather(np.array(questions))
  return tuple(answers.any(axis=0).tolist())


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


@functools.partial(jax.jit, static_argnums=1)
def _resharded(tree: Any, sharding: NamedSharding) -> Any:
  return jax.lax.with_sharding_constraint(tree, sharding)
