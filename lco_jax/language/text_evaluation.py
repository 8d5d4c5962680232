"""Evaluation of pretrained models on problems that they were not trained on.

Policies complete the problems of a split greedily and by untempered samples,
and the task's own verifier scores the texts.

Axes: samples K, problems Q.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lco_jax import networks, tasks, types
from lco_jax.language import (
  generation,
  host_sampler,
  scoring,
  text_completion,
)

# Keeps the samples of an evaluation apart from those of training.
_EVALUATION_STREAM = 30_000


class Answers(NamedTuple):
  """Completions of an examination's problems, one of each.

  Attributes:
    tokens: of the completions, their end included.
    texts: of the completions.
    values: float[Q, K], their scores.
    failed: bool[Q], whether the verifier failed or took too long.
  """

  tokens: list[list[int]]
  texts: list[str]
  values: np.ndarray
  failed: np.ndarray

  @property
  def correct(self) -> np.ndarray:
    """Whether each solves its problem, by the first score: bool[Q]."""
    return self.values[:, 0] >= 1


@dataclasses.dataclass(frozen=True)
class Examination:
  """The problems of a split, for policies to complete.

  Attributes:
    asking: how policies are asked.
    split: a key of `tasks.SPLITS`.
    problems: as of `TextTask.problem`; some may be alike.
    prompts: their tokens.
    num_samples: samples of each problem, K.
    completer: of the policies.
    key: PRNG key of the samples.
  """

  asking: host_sampler.Asking
  split: str
  problems: list[dict[str, Any]]
  prompts: list[list[int]]
  num_samples: int
  completer: text_completion.Completer
  key: types.PRNGKey


def make_examination(
  asking: host_sampler.Asking,
  model: networks.LanguageModel,
  split: str,
  *,
  num_problems: int,
  num_samples: int,
  batch_size: int,
  seed: int,
  mesh: Mesh | None = None,
  gather_dtype: str | None = None,
) -> Examination:
  """Draws the problems of a split.

  Args:
    asking: how policies are asked.
    model: the policies' network.
    split: a key of `tasks.SPLITS`.
    num_problems: Q.
    num_samples: K.
    batch_size: sequences that are completed side by side.
    seed: of the samples.
    mesh: that divides the policies; None if one device holds them.
    gather_dtype: as of `GroupGeneration`.

  Raises:
    ValueError: if a problem leaves no room for an answer.
  """
  if isinstance(asking.task, tasks.RowTask):  # It repeats problems otherwise.
    num_problems = min(num_problems, asking.task.count(split))
  problems = [
    asking.task.problem(split, number) for number in range(num_problems)
  ]
  return Examination(
    asking,
    split,
    problems,
    [asking.prompt(problem) for problem in problems],
    num_samples,
    text_completion.Completer(
      model,
      asking.tokenizer.end,
      asking.completion_length,
      batch_size,
      mesh,
      gather_dtype,
      asking.num_slots,
    ),
    jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM),
  )


def complete_problems(
  examination: Examination,
  params: types.Params,
  scorer: scoring.Scorer,
  sampling: generation.Sampling,
  indices: Sequence[int],
) -> list[Answers]:
  """Completes every problem once for each index, and scores the texts.

  Args:
    examination: the problems.
    params: of the policy, on devices.
    scorer: of completions.
    sampling: the distribution to sample from.
    indices: each gives other samples.
  """
  keys = jnp.stack(
    [
      jax.random.split(
        jax.random.fold_in(examination.key, index), len(examination.prompts)
      )
      for index in indices
    ]
  )
  completions = examination.completer.complete(
    params, examination.prompts, keys, sampling
  )
  return [_score(examination, tokens, scorer) for tokens in completions]


def _score(
  examination: Examination, tokens: list[list[int]], scorer: scoring.Scorer
) -> Answers:
  texts = [examination.asking.tokenizer.decode(own) for own in tokens]
  waiting = [
    scorer.submit(problem, text)
    for problem, text in zip(examination.problems, texts, strict=True)
  ]
  scores = scorer.collect(waiting)
  return Answers(
    tokens,
    texts,
    np.array([score.values for score in scores]),
    np.array([score.failed for score in scores]),
  )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Answers of a policy to an examination.

  Attributes:
    greedy: bool[Q], whether the likeliest completion is right.
    sampled: bool[K, Q], whether each sample is right.
    texts: greedy completions.
    num_failed: completions that could not be scored.
    greedy_values: float[K], mean scores of the greedy completions.
    sampled_values: float[K], mean scores of the samples.
  """

  greedy: np.ndarray
  sampled: np.ndarray
  texts: list[str]
  num_failed: int
  greedy_values: np.ndarray
  sampled_values: np.ndarray


def evaluate(
  examination: Examination, params: types.Params, scorer: scoring.Scorer
) -> Evaluation:
  """Evaluates a policy, greedily and by untempered samples.

  Args:
    examination: the problems.
    params: of the policy, as of `Completer.place`.
    scorer: of completions.
  """
  params = examination.completer.place(params)
  (greedy,) = complete_problems(
    examination, params, scorer, generation.Sampling(temperature=0.0), [0]
  )
  sampled = complete_problems(
    examination,
    params,
    scorer,
    generation.Sampling(),
    range(1, 1 + examination.num_samples),
  )
  return Evaluation(
    greedy.correct,
    np.stack([own.correct for own in sampled]),
    greedy.texts,
    sum(int(own.failed.sum()) for own in [greedy, *sampled]),
    greedy.values.mean(axis=0),
    np.mean([own.values for own in sampled], axis=(0, 1)),
  )
