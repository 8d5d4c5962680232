"""Language configurations, e.g. --config=experiments/configs/language.py:TASK.

None stands for the value tuned for this task and algorithm
(policy_learning_rate, beta, ...) or for the algorithm's default.
"""

import ml_collections
from ml_collections import config_dict

from lco_jax.language import generation, samplers, training
from lco_jax.trainers import language as build
from lco_jax.trainers import settings
from lco_jax.trainers.configs import defaults

# Default and tuned settings; docs/measurements.md has the sweeps.
_DEFAULT = {
  "policy_learning_rate": 3e-4,
  "beta": 1.0,
  "learning_rate_warmup": 20,  # Less in runs of fewer than 40 steps.
}
_TUNED = {"dpo": {"beta": 0.1}}
_TUNED_ADDITION = {"lco_kld": {"policy_learning_rate": 3e-3, "beta": 0.1}}


def get_config(task: str = "addition") -> ml_collections.ConfigDict:
  """Settings of a language run.

  Args:
    task: NAME, NAME:SIZE,... or reasoning_gym:NAME; see lco_jax.tasks.
  """
  # Learning long sums from rewards alone is slow, so addition defaults to exact
  # advantages of every token. Then more prompts help more than more samples.
  exact = task.startswith("addition")

  config = ml_collections.ConfigDict()
  config.task = task
  # "sft" trains only the supervised warm start; "dpo", "rebel" use pairs.
  config.algorithm = "lco_kld"

  defaults.add_options(config, settings.RunOptions)
  config.num_seeds = 4
  config.learning_rate_warmup = config_dict.placeholder(int)  # Tuned, below.
  config.policy_max_gradient_norm = config.value_max_gradient_norm = 1.0

  # Amount: each seed takes num_updates × num_prompts × num_samples samples.
  config.num_updates = 900
  config.eval_problems = 512
  config.eval_samples = 32

  # Initial policy: the final policy of the run init_from, or else of a
  # supervised warm start, a separate run in WORKDIR/warm_start.
  config.warm_start_updates = 500
  config.warm_start_prompts = 128
  config.warm_start_learning_rate = 3e-3
  config.init_from = config_dict.placeholder(str)

  # Learning: see `Options` of lco_jax.language.training.
  defaults.add_options(config, training.Options, without=build.NOT_SET)
  config.beta = config_dict.placeholder(float)  # Tuned, see below.
  if exact:
    config.num_prompts, config.num_samples = 128, 2
    config.advantage = "oracle"
  # Run whose final policy advantage=verifier or =preference asks.
  config.verifier_from = config_dict.placeholder(str)

  # Sampling and rewards.
  defaults.add_options(config, generation.Sampling)
  defaults.add_options(config, samplers.RewardOptions)
  # Maximal tokens of a prompt and its completion.
  config.context_length = 512 if task.startswith("reasoning_gym:") else 64

  # Network.
  config.num_layers = 2
  config.width = 64
  config.num_heads = 4
  config.num_kv_heads = 4
  config.mlp_width = 176
  config.tied_embeddings = True
  config.dtype = "float32"
  config.rematerialize = False

  # Last: it refuses an option that is called like a setting.
  defaults.add_algorithm_options(config)

  own = _TUNED_ADDITION if exact else {}
  config.tuned = {"chosen": ("task", task)} | {
    algorithm: _DEFAULT | _TUNED.get(algorithm, {}) | own.get(algorithm, {})
    for algorithm in build.algorithm_names()
  }
  return config
