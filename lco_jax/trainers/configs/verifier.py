"""Verifiers, e.g. --config=experiments/configs/verifier.py:chain_sum.

A reasoning-gym task follows the colon. None stands for the value in `tuned`.
"""

import ml_collections

from lco_jax.language import pairs
from lco_jax.trainers.configs import defaults, llm

# Common starting points, not tuned.
_DEFAULT = {
  "qrm": {"policy_learning_rate": 1e-5, "learning_rate_warmup": 5},
  "dpo": {"policy_learning_rate": 1e-5, "learning_rate_warmup": 5}
  | {"beta": 0.1},
}

# Settings by task that work well.
_BY_TASK = {"chain_sum": {"completion_length": 12, "num_updates": 30}}


def get_config(task: str = "chain_sum") -> ml_collections.ConfigDict:
  """Settings of the training of a verifier on pairs.

  Args:
    task: reasoning-gym's name of the task.
  """
  config = llm.make_common(task)
  config.algorithm = "qrm"  # Or dpo.
  # Write the verifier at the end, for later runs.
  config.export = True
  # Training uses all pairs of a better and a worse sample of a prompt.
  config.num_updates = 40
  config.eval_samples = 8
  # Options of qrm; dpo uses beta.
  defaults.add_unset_options(config, pairs.Options, pairs.ALGORITHMS["qrm"])

  config.update(_BY_TASK.get(task, {}))
  config.tuned = {"chosen": ("task", task)} | {
    algorithm: _DEFAULT[algorithm] for algorithm in pairs.VERIFIERS
  }
  return config
