"""Learner states on the host and on devices, for saving and going on."""

import dataclasses

import jax

from lco_jax import types
from lco_jax.training import placement as placement_lib


def host_state(
  placement: placement_lib.Placement, state: types.LearnerState
) -> types.LearnerState:
  """A learner state as NumPy arrays, however it was placed.

  Args:
    placement: that of the state.
    state: [devices, seeds, ...].

  Returns:
    The state with axes [seeds, ...], the actor's with [seeds, N, ...] of all
    streams.
  """
  return dataclasses.replace(
    placement.collect_seeds(dataclasses.replace(state, actor=None)),
    actor=placement.collect_streams(state.actor),
  )


def placed_state(
  placement: placement_lib.Placement, state: types.LearnerState
) -> types.LearnerState:
  """Puts a state of NumPy arrays on devices: the inverse of `host_state`.

  Args:
    placement: where it goes; need not be the one that it came from.
    state: from `host_state`.
  """
  dealt = dataclasses.replace(
    jax.tree.map(placement.deal, dataclasses.replace(state, actor=None)),
    actor=jax.tree.map(placement.deal_streams, state.actor),
  )
  return placement.put(dealt)
