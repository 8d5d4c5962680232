"""Meeting a prompt again until all of its samples solve it.

What all samples solve teaches nothing more, and when most prompts are solved, a
batch has few that are not. A stream that keeps those has more of them.

It carries the number of updates that were completed when its prompt was drawn.
The prompt can be drawn from it again, so a run that is resumed meets the same.
"""

import jax
import jax.numpy as jnp

from lco_jax import checks, numerics, types
from lco_jax.language import data

Array = jax.Array

# Metrics that are NaN where no prompt is new: `Training.counts`.
COUNTS = {"first_visit_correct": "first_visits"}


def check(max_visits: int) -> None:
  """Checks the number.

  Raises:
    ValueError: if it is out of range.
  """
  checks.check_number("max_visits", max_visits, at_least=1)


def first(keys: types.PRNGKey) -> Array:
  """What streams with keys [N] carry at first: int32[N]."""
  return jnp.zeros(len(keys), jnp.int32)


def following(
  drawn: Array, correct: Array, completed: Array, max_visits: int
) -> Array:
  """What streams carry into the next update.

  Args:
    drawn: int32[N], completed updates when their prompts were drawn.
    correct: bool[G, N], the samples that solve them.
    completed: int32[], completed updates before this one.
    max_visits: updates that a prompt is met in at most, ≥ 1.

  Returns:
    int32[N].

  Source: in place of the drawing of more prompts of arXiv:2503.14476, section
    3.2. BUILD_NOTES.md has what it does.
  """
  unsolved = ~jnp.all(correct, axis=0)
  again = unsolved & (completed + 1 - drawn < max_visits)
  return jnp.where(again, drawn, completed + 1)


def metrics_of(samples: data.TextSamples) -> types.Metrics:
  """How prompts that were not met before fared, over all devices.

  The others are those that were not solved: a mean with them is a lower one.

  Args:
    samples: [G, N], this device's share.

  Returns:
    The share of such prompts' samples that are right, NaN if there are none,
    and the number of such prompts.
  """
  where = samples.first_visit
  right, count = jax.lax.psum(
    (jnp.sum(samples.correct & where), jnp.sum(where)), numerics.DEVICE_AXIS
  )
  return {
    "first_visit_correct": jnp.where(count > 0, right / count, jnp.nan),
    "first_visits": (count / len(where)).astype(jnp.float32),
  }
