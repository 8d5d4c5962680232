"""Types that all of the library shares."""

import dataclasses
from typing import Any, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array
Params = Any  # A pytree of one network's parameters.
Metrics = dict[str, Array]


def pytree_dataclass(cls):
  """A frozen dataclass whose fields are all children of the pytree."""
  return jax.tree_util.register_dataclass(
    dataclasses.dataclass(frozen=True)(cls)
  )


@pytree_dataclass
class LearnerState:
  """All that training carries: saving this pytree saves the run.

  Attributes:
    params: {part: parameters}: "policy", "value" and what else a run needs.
    opt_state: {part: optax state}.
    actor: the collector's state, different on every device.
    key: uint32[2], words of the run's PRNG key: a plain array, which can be
      dealt and saved. Randomness is drawn from it, the update's number and the
      environment's global index, so it never changes.
    update: int32[], completed updates.
  """

  params: dict[str, Params]
  opt_state: dict[str, Any]
  actor: Any
  key: Array
  update: Array


class Apply(Protocol):
  """A network: parameters and observations [..., O] to outputs [...]."""

  def __call__(self, params: Params, observation: Array) -> Array:
    """Applies the network to observations with any leading axes."""
    ...
