"""Stands in for reasoning-gym where it is not installed: one small task."""

import dataclasses
import random

from reasoning_gym import factory


@dataclasses.dataclass
class ChainSum:
  """Sums of two digits; it has no others."""

  seed: int
  size: int
  min_terms: int = 2
  max_terms: int = 2
  min_digits: int = 1
  max_digits: int = 1

  def __getitem__(self, index):
    rng = random.Random(self.seed + index)
    a, b = rng.randrange(10), rng.randrange(10)
    return {"question": f"{a} + {b} =", "answer": str(a + b), "metadata": {}}

  def score_answer(self, answer, entry):
    if answer is None:
      return 0.0
    near = 0.5 * (len(answer) % 2)  # So that a random model gets something.
    return 1.0 if answer == entry["answer"] else near


factory.DATASETS["chain_sum"] = ChainSum


def create_dataset(name, **options):
  """A task by its name."""
  return factory.DATASETS[name](**options)
