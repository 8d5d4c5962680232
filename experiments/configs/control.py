"""Control configurations, e.g. --config=experiments/configs/control.py:ID.

None stands for the value tuned for this environment and algorithm
(policy_learning_rate, beta) or for the algorithm's default.
"""

import ml_collections
from ml_collections import config_dict

from experiments.configs import defaults
from lco_jax import algorithms
from lco_jax.control import training

# Environment steps per seed; the default is 200,000.
_TOTAL_STEPS = {
  "CartPole-v1": 500_000,
  "Acrobot-v1": 500_000,
  "Catch-bsuite": 500_000,
}

# Settings of untuned algorithms, then tuned settings by environment ("default":
# environments that are not listed). docs/measurements.md has the sweeps.
_DEFAULT = {"policy_learning_rate": 3e-4, "beta": 1.0}
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
    environment: id of an environment; see lco_jax.environments.
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

  # Optimization: any optax optimizer, separate for policy and value.
  config.optimizer = "adam"
  config.optimizer_options = ""  # For the optimizer, e.g. "b1=0.8,eps=1e-5".
  config.learning_rate_schedule = "linear"
  config.learning_rate_warmup = 0  # Optimizer steps of linear warmup.
  config.policy_learning_rate = config_dict.placeholder(float)
  # If given, one program trains every seed at each of these rates.
  config.policy_learning_rates = ()
  config.value_learning_rate = 1e-3
  config.policy_max_gradient_norm = 0.5  # Global norm; 0 for no clipping.
  config.value_max_gradient_norm = 0.5

  # Host side.
  config.updates_per_chunk = config_dict.placeholder(int)
  config.checkpoint_seconds = 30.0  # Between checkpoints.
  config.keep_checkpoints = 3  # Number of newest checkpoints to keep.
  config.wandb_project = config_dict.placeholder(str)

  config.tuned = {"chosen": ("environment", environment)} | {
    algorithm: _DEFAULT
    | _TUNED["default"].get(algorithm, {})
    | _TUNED.get(environment, {}).get(algorithm, {})
    for algorithm in algorithms.CONTROL
  }
  return config
