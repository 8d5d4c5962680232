"""Evaluation of language models on problems that they were not trained on.

Policies of several training seeds meet the same problems; parameters have a
leading axis S.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import networks, tasks, types
from lco_jax.language import generation

# Keeps the problems and samples of an evaluation apart from those of training.
_EVALUATION_STREAM = 30_000


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What policies of S seeds made of Q problems.

  Attributes:
    greedy: bool[S, Q], whether the likeliest completion is right.
    num_correct: int[S, Q], how many of the sampled completions are.
    num_samples: completions sampled for each problem.
    difficulty: int[Q].
    examples: of each seed's greedy completions: (prompt, right answer,
      completion, whether it is right).
  """

  greedy: np.ndarray
  num_correct: np.ndarray
  num_samples: int
  difficulty: np.ndarray
  examples: list[list[tuple[str, str, str, bool]]]

  def of(self, seeds: slice) -> "Evaluation":
    """What some of the policies made of the problems."""
    return dataclasses.replace(
      self,
      greedy=self.greedy[seeds],
      num_correct=self.num_correct[seeds],
      examples=self.examples[seeds],
    )

  def pass_at_k(self, k: int) -> np.ndarray:
    """Probability that one of k samples is right, float[S]."""
    return pass_at_k(self.num_correct, self.num_samples, k).mean(axis=1)

  def by_difficulty(self) -> dict[int, np.ndarray]:
    """Greedy accuracy of each seed, {difficulty: float[S]}."""
    return {
      int(level): self.greedy[:, self.difficulty == level].mean(axis=1)
      for level in np.unique(self.difficulty)
    }


def pass_at_k(num_correct: np.ndarray, num_samples: int, k: int) -> np.ndarray:
  """Unbiased estimate of the probability that one of k samples is right.

      1 − C(n − c, k) / C(n, k)

  Args:
    num_correct: int[...], c of n samples that are right.
    num_samples: n.
    k: at most n.

  Returns:
    float64[...], in [0, 1].

  Raises:
    ValueError: if k is not in [1, n].

  Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
  """
  if not 1 <= k <= num_samples:
    raise ValueError(f"k must be in [1, {num_samples}], got {k}")
  wrong = num_samples - np.asarray(num_correct, np.float64)
  # C(n − c, k) / C(n, k), factor by factor: every one is a probability.
  drawn = np.arange(k, dtype=np.float64)
  factors = (wrong[..., None] - drawn) / (num_samples - drawn)
  return 1.0 - np.prod(np.maximum(factors, 0.0), axis=-1)


def evaluate(
  task: tasks.Task,
  model: networks.LanguageModel,
  params: types.Params,
  *,
  split: str,
  num_problems: int,
  num_samples: int,
  seed: int,
  num_examples: int = 5,
) -> Evaluation:
  """Evaluates policies, greedily and by untempered samples.

  Args:
    task: asks and verifies.
    model: the policies' network.
    params: policies' parameters [S, ...].
    split: a key of `tasks.SPLITS`.
    num_problems: Q, drawn independently: some may be alike.
    num_samples: completions sampled for each problem.
    seed: of the problems and samples.
    num_examples: completions to show.
  """
  key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
  problem_key, sample_key = jax.random.split(key)
  draw = jax.jit(jax.vmap(tasks.draw_from(task, split)))
  problems = draw(jax.random.split(problem_key, num_problems))

  def complete(own, asked, keys, sampling):
    completion = generation.generate(
      model,
      own,
      asked.prompt,
      asked.padding,
      keys,
      task.completion_length,
      tasks.END,
      sampling,
    )
    right = jax.vmap(task.verify)(asked, completion.tokens, completion.mask)
    return right, completion.tokens

  keys = jax.random.split(sample_key, (num_samples, num_problems))

  def play(own):
    """One seed; a sample of all problems at a time bounds the memory."""
    greedy, tokens = complete(
      own, problems, keys[0], generation.Sampling(temperature=0.0)
    )
    sampled = jax.lax.map(
      lambda k: complete(own, problems, k, generation.Sampling())[0], keys
    )
    return greedy, tokens, jnp.sum(sampled, axis=0)

  greedy, tokens, num_correct = jax.tree.map(
    np.asarray, jax.jit(lambda p: jax.lax.map(play, p))(params)
  )
  examples = [
    [
      (
        task.text(problems.prompt[q]),
        task.text(problems.answer[q]),
        task.text(own_tokens[q]),
        bool(own_greedy[q]),
      )
      for q in range(min(num_examples, num_problems))
    ]
    for own_tokens, own_greedy in zip(tokens, greedy, strict=True)
  ]
  return Evaluation(
    greedy, num_correct, num_samples, np.asarray(problems.difficulty), examples
  )
