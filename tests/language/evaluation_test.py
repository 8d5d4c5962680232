"""Accuracy and pass@k, against enumeration and a policy that is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax import networks, tasks
from lco_jax.language import evaluation

# Flax mixes ranks.
pytestmark = pytest.mark.third_party


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_against_enumeration(n):
  """The share of all subsets of k samples that hold a right one."""
  for c, k in itertools.product(range(n + 1), range(1, n + 1)):
    right = [i < c for i in range(n)]
    subsets = list(itertools.combinations(right, k))
    expected = np.mean([any(subset) for subset in subsets])
    found = evaluation.pass_at_k(np.array(c), n, k)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_pass_at_k_is_unbiased():
  """Its mean over draws of n samples is 1 − (1 − p)^k."""
  rng = np.random.default_rng(0)
  for p, k in [(0.1, 4), (0.5, 2), (0.02, 8)]:
    counts = rng.binomial(16, p, 200_000)
    found = evaluation.pass_at_k(counts, 16, k).mean()
    np.testing.assert_allclose(found, 1 - (1 - p) ** k, atol=4e-3)


@pytest.mark.parametrize("k", [0, 9])
def test_k_that_cannot_be(k):
  with pytest.raises(ValueError, match="k must be in"):
    evaluation.pass_at_k(np.zeros(3), 8, k)


def _guesser(task, probabilities):
  """A model that answers one digit of parity, with probabilities, and ends."""

  def read(params, tokens, padding, cache, start):
    digit = jnp.log(jnp.array([1e-9, 1e-9, *probabilities, 1e-9])) + params
    end = 50.0 * jax.nn.one_hot(tasks.END, task.vocab_size)
    first = jnp.asarray(start) == 0
    logits = jnp.where(first, digit, end)
    return jnp.broadcast_to(logits, (*tokens.shape, task.vocab_size)), cache

  return networks.LanguageModel(
    init=None,
    hidden=None,
    head=lambda params, outputs: outputs,
    apply=None,
    empty_cache=None,
    reader=lambda params, *_: (functools.partial(read, params), ()),
    vocab_size=task.vocab_size,
  )


def test_against_a_policy_that_is_known():
  """Two seeds: one says 1 in 3 of 4 cases, one always."""
  task = tasks.make("parity:8")
  model = _guesser(task, (0.25, 0.75))
  result = evaluation.evaluate(
    task,
    model,
    jnp.array([[0.0] * 5, [0.0, 0.0, 0.0, 50.0, 0.0]]),
    split="test",
    num_problems=400,
    num_samples=16,
    seed=0,
  )
  odd = result.greedy[0]  # Whether 1 is the answer.
  np.testing.assert_array_equal(result.greedy[1], odd)
  assert 0.4 < odd.mean() < 0.6
  expected = np.where(odd, 0.75, 0.25)
  found = result.num_correct[0] / 16
  for value in (0.25, 0.75):
    np.testing.assert_allclose(
      found[expected == value].mean(), value, atol=0.03
    )
  np.testing.assert_array_equal(result.num_correct[1], 16 * odd)
  np.testing.assert_allclose(result.pass_at_k(1)[0], found.mean(), rtol=1e-12)
  np.testing.assert_allclose(
    result.pass_at_k(8)[0],
    np.mean(1 - (1 - expected) ** 8),
    atol=0.02,
  )
  np.testing.assert_allclose(result.pass_at_k(8)[1], odd.mean())
  levels = result.by_difficulty()
  assert set(levels) == set(result.difficulty) <= set(range(2, 9))
  counts = [np.sum(result.difficulty == level) for level in levels]
  np.testing.assert_allclose(
    np.average(list(levels.values()), axis=0, weights=counts),
    result.greedy.mean(axis=1),
  )
  assert len(result.examples[0]) == 5
  second = result.select_seeds(slice(1, 2))
  np.testing.assert_array_equal(second.pass_at_k(1), result.pass_at_k(1)[1:])
  assert second.examples == result.examples[1:]
  for prompt, answer, said, right in result.examples[0]:
    assert answer == str(prompt.count("1") % 2)
    assert said == "1" and right == (answer == "1")


def test_problems_are_of_the_split():
  """Seeds change the problems, and repeat them."""
  task = tasks.make("parity:8")
  model = _guesser(task, (0.5, 0.5))

  def examples(seed, split):
    result = evaluation.evaluate(
      task,
      model,
      jnp.zeros((1, 5)),
      split=split,
      num_problems=100,
      num_samples=1,
      seed=seed,
      num_examples=100,
    )
    return {prompt for prompt, *_ in result.examples[0]}

  first = examples(0, "test")
  assert first == examples(0, "test")
  assert not first & examples(0, "train")
  assert first != examples(1, "test")
