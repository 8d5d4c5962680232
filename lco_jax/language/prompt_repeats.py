"""Repeats a prompt in the next updates until all of its samples solve it.

A prompt that every sample solves gives no gradient. Keeping unsolved prompts
leaves more useful ones in each batch.

A stream carries the number of updates that were completed when its prompt was
drawn. The prompt can be drawn from it again, so a run that is resumed goes on
with the same prompts.
"""

import jax.numpy as jnp
from jax import Array

from lco_jax import numerics, types
from lco_jax.language import data

# Metrics that are NaN where no prompt is new: `Training.counts`.
COUNTS = {"first_visit_correct": "first_visits"}


def init_streams(keys: types.PRNGKey) -> Array:
  """State of streams with keys [N] before the first update: int32[N]."""
  return jnp.zeros(len(keys), jnp.int32)


def advance_streams(
  drawn: Array, correct: Array, completed: Array, max_visits: int
) -> Array:
  """Decides which streams draw a new prompt for the next update.

  Args:
    drawn: int32[N], completed updates when their prompts were drawn.
    correct: bool[G, N], the samples that solve them.
    completed: int32[], completed updates before this one.
    max_visits: updates that a prompt is sampled in at most, ≥ 1.

  Returns:
    int32[N], the same for the next update.

  Source: in place of the drawing of more prompts of arXiv:2503.14476, section
    3.2. docs/measurements.md has its effect.
  """
  unsolved = ~jnp.all(correct, axis=0)
  again = unsolved & (completed + 1 - drawn < max_visits)
  return jnp.where(again, drawn, completed + 1)


def summarize_first_visits(samples: data.Samples) -> types.Metrics:
  """Accuracy on prompts that are sampled for the first time, over all devices.

  Repeated prompts are the unsolved ones, so including them would bias the mean
  downwards.

  Args:
    samples: [G, N], this device's share.

  Returns:
    The share of such prompts' samples that are right, NaN if there are none,
    and the number of such prompts.
  """
  where = samples.first_visit
  right, count = numerics.psum(
    (jnp.sum(samples.correct & where), jnp.sum(where)), numerics.DATA_AXIS
  )
  return {
    "first_visit_correct": jnp.where(count > 0, right / count, jnp.nan),
    "first_visits": (count / len(where)).astype(jnp.float32),
  }
