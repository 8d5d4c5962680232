"""Types shared by the whole library."""

import dataclasses
from typing import Any, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # A pytree of one network's parameters.
Metrics = dict[str, Array]


def pytree_dataclass(cls):
  """Makes a frozen dataclass that is a pytree of its fields.

  A field of `static_field` is a part of the tree's structure.
  """
  return jax.tree_util.register_dataclass(
    dataclasses.dataclass(frozen=True)(cls)
  )


def static_field(default: Any) -> Any:
  """Makes a field of a pytree_dataclass that compiled programs know."""
  return dataclasses.field(default=default, metadata={"static": True})


@pytree_dataclass
class LearnerState:
  """The whole state of training: saving this pytree saves the run.

  Attributes:
    params: {part: parameters}: "policy", "value" and others that a run needs.
    opt_state: {part: optax state}.
    actor: the collector's state; streams on its leading axis.
    key: uint32[2], the run's PRNG key as a plain array, which can be copied to
      devices and saved. It never changes: randomness derives from it, the
      update number and the environment's global index.
    update: int32[], number of completed updates.
  """

  params: dict[str, Params]
  opt_state: dict[str, Any]
  actor: Any
  key: Array
  update: Array


class Apply(Protocol):
  """A network: (parameters, observations [..., O]) → outputs [...]."""

  def __call__(self, params: Params, observation: Array) -> Array:
    """Applies the network to observations with any leading axes."""
    ...
