"""Verifiers, e.g. --config=experiments/configs/verifier.py:chain_sum.

What follows the colon is a task of reasoning-gym. A value of None is filled in
by `tuned`.
"""

import ml_collections
from ml_collections import config_dict

from experiments.configs import llm
from lco_jax.language import pairs

# Where others begin; not tuned.
_DEFAULT = {
  "qrm": {"policy_learning_rate": 1e-5},
  "dpo": {"policy_learning_rate": 1e-5, "beta": 0.1},
}

# What was found to do.
_OF_TASK = {"chain_sum": {"completion_length": 12, "num_updates": 30}}


def get_config(task: str = "chain_sum") -> ml_collections.ConfigDict:
  """Settings of the training of a verifier by pairs.

  Args:
    task: as reasoning-gym has it.
  """
  config = llm.common(task)
  config.algorithm = "qrm"  # Or dpo.
  # What is learned is for others to be asked: it is written at the end.
  config.export = True
  # Pairs are all of a better and a worse sample of a prompt.
  config.num_updates = 40
  config.eval_samples = 8
  # qrm: weight of the chosen completion's likelihood; dpo has beta.
  config.cross_entropy_coefficient = config_dict.placeholder(float)

  config.update(_OF_TASK.get(task, {}))
  config.tuned = {"chosen": ("task", task)} | {
    algorithm: _DEFAULT[algorithm] for algorithm in pairs.VERIFIERS
  }
  return config
