"""Finding what made an update not finite, by running that one update again.

An update that is not finite is not applied, so the state that is left is the
one before it, and with the rollout it holds all that the update depends on, but
for rounding: on one device, and on padded rows, sums have another order.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lco_jax import types
from lco_jax.training import finiteness, placement, program


@dataclasses.dataclass(frozen=True)
class Fault:
  """The first thing in an update that is not finite.

  Attributes:
    stage: where: the rollout, the batch, a minibatch.
    names: what of it.
  """

  stage: str
  names: tuple[str, ...]

  def __str__(self):
    return f"{self.stage}: {', '.join(self.names)} not finite"


def collect(training: program.Training, state: types.LearnerState) -> Any:
  """Collects the rollout of the update that follows a state.

  Args:
    training: what is trained, on in-graph environments.
    state: one seed's, on the host, without the seeds' axis.

  Returns:
    The rollout [T, N, ...], on the host.
  """
  collect_step = functools.partial(program.collect_step, training)
  _, rollout = _run_alone(collect_step, state)
  return rollout


def replay(
  training: program.Training, state: types.LearnerState, rollout: Any
) -> program.Record:
  """Runs one update of one seed on one device and keeps all that happens.

  Args:
    training: what is trained.
    state: before the update; one seed's, on the host, without the seeds' axis.
    rollout: [T, N, ...], of all streams.
  """
  if training.count_packed is not None:
    # The places for packed tokens are those of one device of the run.
    rollout = dataclasses.replace(rollout, packed_tokens=None)
  learn = functools.partial(program.learn, training)
  _, _, record = _run_alone(learn, state, rollout)
  return record


def find(record: program.Record, counts: Mapping[str, str]) -> Fault | None:
  """Finds the first thing in an update that is not finite; None if all is.

  Args:
    record: of one update of one seed, on the host.
    counts: as of `program.Training`.
  """
  minibatches = {name: a.mean for name, a in record.minibatches.items()}
  finite = np.all([np.isfinite(v) for v in minibatches.values()], axis=0)
  stages = [
    ("rollout", _named(record.rollout)),
    ("batch", _named(record.batch)),
    *(
      (f"minibatch {m + 1} of {len(finite)}", _at(minibatches, m))
      for m in np.flatnonzero(~finite)
    ),
    ("before the epochs", finiteness.always_finite(record.before, counts)),
    ("after the epochs", finiteness.always_finite(record.after, counts)),
  ]
  for stage, leaves in stages:
    names = [n for n, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if names:
      return Fault(stage, tuple(names))
  return None


def _run_alone(function, *args):
  """Runs a function of one device's share as the only device, on the host."""
  result = jax.jit(placement.bind_device_axis(function))(*args)
  return jax.tree.map(np.asarray, result)


def _at(leaves: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
  return {name: leaf[index] for name, leaf in leaves.items()}


def _named(tree: Any) -> dict[str, np.ndarray]:
  """Leaves by path, without the punctuation of Python."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
