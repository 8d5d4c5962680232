"""Language configurations, e.g. --config=experiments/configs/language.py:TASK.

A value of None is filled in by what was tuned for this task and algorithm
(policy_learning_rate, beta, ...) or by the algorithm's own default.
"""

import ml_collections
from ml_collections import config_dict

from experiments.builders import language as build
from experiments.configs import defaults
from lco_jax.language import generation, samplers, training

# Settings of the library that only models of many tokens need.
_OF_LARGE_MODELS = (
  "num_microbatches",
  "chunk_tokens",
  "agreement_beta_multiple",
  "lora_rank",
  "lora_alpha",
)
# What was tuned; BUILD_NOTES.md has the sweeps.
_DEFAULT = {
  "policy_learning_rate": 3e-4,
  "beta": 1.0,
}
_TUNED = {"dpo": {"beta": 0.1}}
_TUNED_ADDITION = {"lco_kld": {"policy_learning_rate": 3e-3, "beta": 0.1}}


def get_config(task: str = "addition") -> ml_collections.ConfigDict:
  """Settings of a language run.

  Args:
    task: NAME, NAME:SIZE,... or reasoning_gym:NAME, as of lco_jax.tasks.
  """
  # Rewards alone teach long sums slowly: there the default, for all algorithms,
  # is the exact advantage of every token. Then prompts are worth more than
  # several samples of each.
  exact = task.startswith("addition")

  config = ml_collections.ConfigDict()
  config.task = task
  # "sft" is the supervised warm start alone; "dpo", "rebel" learn from pairs.
  config.algorithm = "lco_kld"

  # Amount: each seed takes num_updates × num_prompts × num_samples samples.
  config.seed = 0
  config.num_seeds = 4
  config.num_updates = 900
  config.eval_problems = 512
  config.eval_samples = 32

  # Where the policy comes from: a supervised warm start, which is a run of its
  # own in WORKDIR/warm_start; or the end of another run, in init_from.
  config.warm_start_updates = 500
  config.warm_start_prompts = 128
  config.warm_start_learning_rate = 3e-3
  config.init_from = config_dict.placeholder(str)

  # Learning: see `Options` of lco_jax.language.training.
  defaults.add_options(config, training.Options, without=_OF_LARGE_MODELS)
  config.beta = config_dict.placeholder(float)  # Tuned, see below.
  if exact:
    config.num_prompts, config.num_samples = 128, 2
    config.advantage = "oracle"
  # Policy that advantages ask (verifier, preference): of the end of this run.
  config.verifier_from = config_dict.placeholder(str)
  defaults.add_algorithm_options(config)

  # Sampling and rewards.
  defaults.add_options(config, generation.Sampling)
  defaults.add_options(config, samplers.RewardOptions)
  # Tokens of a prompt and its completion, at most.
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

  # Optimization: any optax optimizer; policy and value apart.
  config.optimizer = "adam"
  config.optimizer_options = ""  # Of the optimizer, e.g. "b1=0.8,eps=1e-5".
  config.learning_rate_schedule = "linear"
  config.learning_rate_warmup = 20  # Optimizer steps of a linear rise.
  config.policy_learning_rate = config_dict.placeholder(float)
  # Several: every seed at each of them, side by side in one program.
  config.policy_learning_rates = ()
  config.value_learning_rate = 1e-3
  config.policy_max_gradient_norm = 1.0  # Global norm; 0 for no clipping.
  config.value_max_gradient_norm = 1.0

  # Host side.
  config.updates_per_chunk = config_dict.placeholder(int)
  config.checkpoint_seconds = 30.0  # From one checkpoint to the next.
  config.keep_checkpoints = 3  # The newest; older ones are removed.
  config.wandb_project = config_dict.placeholder(str)

  own = _TUNED_ADDITION if exact else {}
  config.tuned = {"chosen": ("task", task)} | {
    algorithm: _DEFAULT | _TUNED.get(algorithm, {}) | own.get(algorithm, {})
    for algorithm in (*build.ALGORITHMS,)
  }
  return config
