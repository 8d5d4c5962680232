"""Finding what made an update not finite, by running that one update again.

An update that is not finite is not applied, so the state that is left is the
one before it, and with the rollout it holds all that the update depends on.
"""

import dataclasses
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


def collect(task: program.Training, state: types.LearnerState) -> Any:
  """Collects the rollout of the update that follows a state.

  Args:
    task: what is trained, on in-graph environments.
    state: one seed's, as of `learner_state.host_state` without the seeds' axis.

  Returns:
    The rollout [T, N, ...], on the host.
  """
  _, rollout = _alone(lambda s: program.collect_step(task, 1, s), state)
  return rollout


def replay(
  task: program.Training, state: types.LearnerState, rollout: Any
) -> program.Record:
  """Runs one update of one seed on one device and keeps all that happens.

  Args:
    task: what is trained.
    state: before the update; one seed's, as of `learner_state.host_state`
      without the seeds' axis.
    rollout: [T, N, ...], of all streams.
  """
  _, _, record = _alone(lambda s, r: program.learn(task, s, r), state, rollout)
  return record


def find(record: program.Record) -> Fault | None:
  """The first thing in an update that is not finite, or None.

  Args:
    record: of one update of one seed, on the host.
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
    ("before the epochs", finiteness.always_finite(record.before)),
    ("after the epochs", finiteness.always_finite(record.after)),
  ]
  for stage, leaves in stages:
    names = [n for n, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if names:
      return Fault(stage, tuple(names))
  return None


def _alone(function, *args):
  """Runs a function of one device's share as the only device, on the host."""
  result = jax.jit(placement.alone(function))(*args)
  return jax.tree.map(np.asarray, result)


def _at(leaves: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
  return {name: leaf[index] for name, leaf in leaves.items()}


def _named(tree: Any) -> dict[str, np.ndarray]:
  """Leaves by path, without the punctuation of Python."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
