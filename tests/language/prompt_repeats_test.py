"""A prompt is met again until all of its samples solve it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.language import host_sampler, prompt_repeats
from lco_jax.training import placement

# Of four prompts: none, some, all, some of three samples are right.
_CORRECT = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 1]], bool)


@pytest.mark.parametrize(
  "completed, max_visits, expected",
  [
    (5, 1, [6, 6, 6, 6]),  # Every prompt is met once.
    (5, 2, [5, 5, 6, 6]),  # The last was drawn an update ago.
    (5, 3, [5, 5, 6, 4]),
    (6, 2, [7, 7, 7, 7]),
  ],
)
def test_what_is_not_solved_is_met_again(completed, max_visits, expected):
  drawn = jnp.array([5, 5, 5, 4], jnp.int32)
  found = prompt_repeats.advance_streams(
    drawn, _CORRECT, jnp.int32(completed), max_visits
  )
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == jnp.int32


def test_the_first_prompts_are_those_of_the_first_update():
  keys = np.zeros((3, 2), np.uint32)
  np.testing.assert_array_equal(prompt_repeats.init_streams(keys), [0, 0, 0])


def test_a_prompt_is_met_once_at_least():
  with pytest.raises(ValueError, match="max_visits must be finite and ≥ 1"):
    host_sampler.make_sampler(8, max_visits=0)


@dataclasses.dataclass(frozen=True)
class _Samples:
  """What is looked at of samples [G, N]."""

  correct: np.ndarray
  first_visit: np.ndarray


@pytest.mark.parametrize(
  "new, correct", [([1, 1, 1, 1], 6 / 12), ([0, 1, 1, 0], 5 / 6)]
)
def test_only_what_is_new_tells_how_good_a_policy_is(new, correct):
  def metrics(correct, first_visit):
    return prompt_repeats.summarize_first_visits(_Samples(correct, first_visit))

  measured = jax.jit(placement.bind_device_axis(metrics))
  first_visit = np.tile(np.array(new, bool), (3, 1))
  found = measured(_CORRECT, first_visit)
  assert float(found["first_visits"]) == sum(new)
  np.testing.assert_allclose(found["first_visit_correct"], correct)
  none = measured(_CORRECT, np.zeros_like(first_visit))
  assert float(none["first_visits"]) == 0
  assert np.isnan(none["first_visit_correct"])
