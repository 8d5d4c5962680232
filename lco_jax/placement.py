"""Where a run lives: how seeds and streams are dealt to devices.

Devices divide the seeds if they can, for seeds have nothing to tell each other.
Otherwise every device holds all seeds and a share of each seed's streams, and
gradients are summed over devices. Neither changes what is computed.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lco_jax import update

Array = jax.Array
DEVICE_AXIS = update.DEVICE_AXIS


@dataclasses.dataclass(frozen=True)
class Placement:
  """What each device holds; from `place`.

  Attributes:
    devices: all that take part.
    num_shards: how many devices divide one seed's streams: all, or 1 where
      devices divide the seeds.
  """

  devices: tuple[jax.Device, ...]
  num_shards: int

  @property
  def divides_seeds(self) -> bool:
    """Whether devices hold different seeds."""
    return self.num_shards < len(self.devices)

  def map(self, function: Callable, donate_argnums=()) -> Callable:
    """Maps a function of one device's share over the devices.

    Args:
      function: of pytrees; runs under an axis DEVICE_AXIS of size num_shards.
      donate_argnums: as in `jax.pmap`.

    Returns:
      The function of pytrees with a leading axis of devices.
    """
    if self.num_shards == len(self.devices):
      return jax.pmap(
        function,
        axis_name=DEVICE_AXIS,
        devices=self.devices,
        donate_argnums=donate_argnums,
      )

    return jax.pmap(
      alone(function), devices=self.devices, donate_argnums=donate_argnums
    )

  def deal(self, array: np.ndarray) -> np.ndarray:
    """[seeds, ...] → [devices, seeds per device, ...]."""
    num_devices = len(self.devices)
    if self.divides_seeds:
      return np.reshape(array, (num_devices, -1, *array.shape[1:]))
    return np.broadcast_to(array, (num_devices, *array.shape))

  def deal_streams(self, array: np.ndarray, axis: int = 1) -> np.ndarray:
    """Deals what is a stream's own.

    Args:
      array: [seeds, ..., streams, ...].
      axis: of the streams.

    Returns:
      [devices, seeds here, ..., streams here, ...].
    """
    if self.divides_seeds:
      return self.deal(array)
    return np.stack(np.split(array, len(self.devices), axis=axis))

  def collect_seeds(self, leaf: Array, axis: int) -> np.ndarray:
    """Brings what all devices of a seed agree on to the host.

    Args:
      leaf: [devices, ...].
      axis: of the seeds per device, in what follows the devices.

    Returns:
      The array without the devices' axis, `axis` holding all seeds.
    """
    shards = np.asarray(leaf)
    return np.concatenate(shards, axis) if self.divides_seeds else shards[0]

  def collect_streams(self, leaf: Array) -> np.ndarray:
    """Brings what is a stream's own to the host: undoes `deal_streams`."""
    return np.concatenate(np.asarray(leaf), axis=0 if self.divides_seeds else 1)


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
    devices: to use.

  Raises:
    ValueError: if neither seeds nor streams divide over the devices.
  """
  if num_seeds % len(devices) == 0:
    return Placement(tuple(devices), num_shards=1)
  if num_streams % len(devices) == 0:
    return Placement(tuple(devices), num_shards=len(devices))
  raise ValueError(
    f"num_envs {num_streams} does not divide over {len(devices)} devices,"
    f" nor does num_seeds {num_seeds}"
  )
