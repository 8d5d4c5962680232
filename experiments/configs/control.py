"""Control configurations, e.g. --config=experiments/configs/control.py:ID.

None stands for the value tuned for this environment and algorithm
(policy_learning_rate, beta) or for the algorithm's default.
"""

import ml_collections
from ml_collections import config_dict

from experiments.configs import policy_loss
from lco_jax import algorithms

# Environment steps per seed; the default is 200,000.
_TOTAL_STEPS = {
  "CartPole-v1": 500_000,
  "Acrobot-v1": 500_000,
  "Catch-bsuite": 500_000,
}

# Settings of untuned algorithms, then tuned settings by environment ("default":
# environments that are not listed). BUILD_NOTES.md has the sweeps.
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

  # Data: a rollout is num_steps in each of num_envs environments.
  config.num_envs = 16
  config.num_steps = 128
  config.num_epochs = 4
  config.num_minibatches = 4
  config.reward_noise = 0.0  # Standard deviation of noise on training rewards.

  # Advantages.
  config.discount = 0.99
  config.gae_lambda = 0.95
  config.normalize_advantages = True
  config.dual_bound = 0.1  # vmpo: KL of its weights from uniform, nats.

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

  # Objective.
  config.beta = config_dict.placeholder(float)
  config.nonpositive_beta_multiple = 1.0
  config.entropy_coefficient = 0.0
  config.value_clip = config_dict.placeholder(float)
  # Minibatch KL, nats, that ends the policy's epochs; None for no limit.
  config.max_kl = config_dict.placeholder(float)

  policy_loss.add_options(config)

  # Whether every update measures the policy loss's curvature, direction, noise.
  config.diagnostics = False

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
