"""Control configurations, e.g. --config=experiments/configs/control.py:ID.

A value of None is filled in by what was tuned for this environment and
algorithm (policy_learning_rate, beta) or by the algorithm's own default.
"""

import ml_collections
from ml_collections import config_dict

from experiments.configs import defaults
from lco_jax import algorithms
from lco_jax.control import training

# Environment steps of each seed, where 200,000 do not suit.
_TOTAL_STEPS = {
  "CartPole-v1": 500_000,
  "Acrobot-v1": 500_000,
  "Catch-bsuite": 500_000,
}

# What an algorithm has where nothing was tuned, and what was: for other
# environments than those named, and for each. BUILD_NOTES.md has the sweeps.
_UNTUNED = {"policy_learning_rate": 3e-4, "beta": 1.0}
_TUNED = {
  "default": {
    "lco_lch": {"beta": 3.0},
    "lco_kld": {"policy_learning_rate": 1e-3},
  },
  "CartPole-v1": {
    "lco_mse": {"policy_learning_rate": 1e-4},
    "ppo": {"policy_learning_rate": 1e-4},
    "reinforce": {"policy_learning_rate": 1e-4},
  },
  "Acrobot-v1": {
    "lco_lch": {"policy_learning_rate": 1e-4},
    "ppo": {"policy_learning_rate": 1e-3},
  },
  "Catch-bsuite": {
    "lco_mse": {"policy_learning_rate": 1e-3},
    "lco_lch": {"policy_learning_rate": 1e-3},
  },
}


def get_config(environment: str = "CartPole-v1") -> ml_collections.ConfigDict:
  """Settings of a control run.

  Args:
    environment: id, as of lco_jax.environments.
  """
  config = ml_collections.ConfigDict()
  config.environment = environment
  config.algorithm = "lco_mse"

  # Amount: every seed takes total_steps environment steps.
  config.seed = 0
  config.num_seeds = 8
  config.total_steps = _TOTAL_STEPS.get(environment, 200_000)
  config.eval_episodes = 100

  # Learning: see `Options` of lco_jax.control.training.
  defaults.add_options(config, training.Options)
  config.beta = config_dict.placeholder(float)  # Tuned, see below.
  defaults.add_algorithm_options(config)

  # Networks.
  config.hidden_sizes = (64, 64)
  config.activation = "tanh"

  # Optimization: any optax optimizer; policy and value apart.
  config.optimizer = "adam"
  config.optimizer_options = ""  # Of the optimizer, e.g. "b1=0.8,eps=1e-5".
  config.learning_rate_schedule = "linear"
  config.learning_rate_warmup = 0  # Optimizer steps of a linear rise.
  config.policy_learning_rate = config_dict.placeholder(float)
  # Several: every seed at each of them, side by side in one program.
  config.policy_learning_rates = ()
  config.value_learning_rate = 1e-3
  config.policy_max_gradient_norm = 0.5  # Global norm; 0 for no clipping.
  config.value_max_gradient_norm = 0.5

  # Host side.
  config.updates_per_chunk = config_dict.placeholder(int)
  config.checkpoint_seconds = 30.0  # From one checkpoint to the next.
  config.keep_checkpoints = 3  # The newest; older ones are removed.
  config.wandb_project = config_dict.placeholder(str)

  config.tuned = {"chosen": ("environment", environment)} | {
    algorithm: _UNTUNED
    | _TUNED["default"].get(algorithm, {})
    | _TUNED.get(environment, {}).get(algorithm, {})
    for algorithm in algorithms.CONTROL
  }
  return config
