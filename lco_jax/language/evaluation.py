"""Evaluation of language models on held-out problems.

Policies of S training seeds get the same problems; their parameters have a
leading axis S.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import networks, tasks, types
from lco_jax.language import generation

# Separates the random keys of evaluation from the keys of training.
_EVALUATION_STREAM = 30_000


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Results of S seeds' policies on Q problems.

  Attributes:
    greedy: bool[S, Q], whether the greedy completion is right.
    num_correct: int[S, Q], number of right sampled completions.
    num_samples: completions sampled per problem.
    difficulty: int[Q].
    examples: greedy completions per seed, each as (prompt, right answer,
      completion, whether it is right).
  """

  greedy: np.ndarray
  num_correct: np.ndarray
  num_samples: int
  difficulty: np.ndarray
  examples: list[list[tuple[str, str, str, bool]]]

  def select_seeds(self, seeds: slice) -> "Evaluation":
    """Selects the results of some seeds."""
    return dataclasses.replace(
      self,
      greedy=self.greedy[seeds],
      num_correct=self.num_correct[seeds],
      examples=self.examples[seeds],
    )

  def pass_at_k(self, k: int) -> np.ndarray:
    """Probability that at least one of k samples is right, float[S]."""
    return pass_at_k(self.num_correct, self.num_samples, k).mean(axis=1)

  def by_difficulty(self) -> dict[int, np.ndarray]:
    """Greedy accuracy of each seed, {difficulty: float[S]}."""
    return {
      int(level): self.greedy[:, self.difficulty == level].mean(axis=1)
      for level in np.unique(self.difficulty)
    }


def pass_at_k(num_correct: np.ndarray, num_samples: int, k: int) -> np.ndarray:
  """Unbiased estimate of the probability that any of k samples is right.

      1 − C(n − c, k) / C(n, k)

  Args:
    num_correct: int[...], c, the number of right samples among n.
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
  # C(n − c, k) / C(n, k) as a product of k probabilities, to avoid overflow.
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
  """Evaluates policies, greedily and with samples at temperature 1.

  Args:
    task: draws and verifies the problems.
    model: the policies' network.
    params: policies' parameters [S, ...].
    split: a key of `tasks.SPLITS`.
    num_problems: Q, drawn independently, possibly with repetitions.
    num_samples: completions sampled per problem.
    seed: random seed of the problems and samples.
    num_examples: number of completions to return as examples.
  """
  key = jax.random.fold_in(jax.random.key(seed), _EVALUATION_STREAM)
  problem_key, sample_key = jax.random.split(key)
  draw = jax.jit(jax.vmap(tasks.draw_from(task, split)))
  problems = draw(jax.random.split(problem_key, num_problems))

  def complete(own, keys, sampling):
    completion = generation.generate(
      model,
      own,
      problems.prompt,
      problems.padding,
      keys,
      task.completion_length,
      tasks.END,
      sampling,
    )
    right = jax.vmap(task.verify)(problems, completion.tokens, completion.mask)
    return right, completion.tokens

  keys = jax.random.split(sample_key, (num_samples, num_problems))

  def evaluate_seed(own):
    """Evaluates one seed, one sample per problem at a time to save memory."""
    greedy, tokens = complete(
      own, keys[0], generation.Sampling(temperature=0.0)
    )
    sampled = jax.lax.map(
      lambda k: complete(own, k, generation.Sampling())[0], keys
    )
    return greedy, tokens, jnp.sum(sampled, axis=0)

  greedy, tokens, num_correct = jax.tree.map(
    np.asarray, jax.jit(lambda p: jax.lax.map(evaluate_seed, p))(params)
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
