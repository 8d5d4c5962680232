"""Meeting a prompt again while there is something to learn from it.

A stream keeps its prompt while some of its samples solve it and some do not:
groups that are all alike have advantages of 0. What it carries is the number of
updates that were completed when its prompt was drawn, from which the prompt can
be drawn again, so a run that is resumed meets the same ones.
"""

import jax
import jax.numpy as jnp

from lco_jax import objectives, types

Array = jax.Array


def check(max_visits: int) -> None:
  """Checks the number.

  Raises:
    ValueError: if it is out of range.
  """
  objectives.check_number("max_visits", max_visits, at_least=1)


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

  Source: as dynamic sampling does, arXiv:2503.14476, section 3.2, it spends
    samples where groups are uneven; over time, in place of drawing more.
  """
  uneven = jnp.any(correct, axis=0) & ~jnp.all(correct, axis=0)
  again = uneven & (completed + 1 - drawn < max_visits)
  return jnp.where(again, drawn, completed + 1)
