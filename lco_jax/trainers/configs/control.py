"""Control configurations, e.g. --config=experiments/configs/control.py:ID.

None stands for the value tuned for this environment and algorithm
(policy_learning_rate, beta) or for the algorithm's default.
"""

import ml_collections
from ml_collections import config_dict

from lco_jax import algorithms, environments
from lco_jax.control import training
from lco_jax.trainers import settings
from lco_jax.trainers.configs import defaults

# Environment steps per seed; the default is 200,000.
_TOTAL_STEPS = {
  "CartPole-v1": 500_000,
  "Acrobot-v1": 500_000,
  "Catch-bsuite": 500_000,
}

# Values of each dimension of continuous actions; the default is 5. An odd
# number has the middle.
_ACTION_BINS = {"Pendulum-v1": 11, "MountainCarContinuous-v0": 7}
_CONTINUOUS = (*_ACTION_BINS, "PointRobot-misc", "Reacher-misc", "Swimmer-misc")

# Settings of untuned algorithms, then tuned settings by environment ("default":
# environments that are not listed). docs/measurements.md has the sweeps.
_DEFAULT = {"policy_learning_rate": 3e-4, "beta": 1.0}
# Of five rates the best or nearly so for lco_fisher, lco_proximal_kl and
# lco_residual on Reacher and PointRobot (10 epochs); their relatives follow.
_FISHER = {"policy_learning_rate": 3e-3}
_TUNED = {
  "default": {
    "lco_fisher": _FISHER,
    "lco_proximal_kl": _FISHER,
    "lco_residual": _FISHER,
    "lco_residual_lch": _FISHER,
    "lco_weighted": _FISHER,
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
  defaults.add_options(config, environments.Options)
  name = environment.removeprefix("gymnax:").removeprefix("gymnasium:")
  if name in _CONTINUOUS:
    config.action_bins = _ACTION_BINS.get(name, 5)

  defaults.add_options(config, settings.RunOptions)
  # Amount: every seed takes total_steps environment steps.
  config.total_steps = _TOTAL_STEPS.get(environment, 200_000)
  config.eval_episodes = 100

  # Learning: see `Options` of lco_jax.control.training.
  defaults.add_options(config, training.Options)
  config.beta = config_dict.placeholder(float)  # Tuned, see below.

  # Networks.
  config.hidden_sizes = (64, 64)
  config.activation = "tanh"

  # Last: it refuses an option that is called like a setting.
  defaults.add_algorithm_options(config)

  config.tuned = {"chosen": ("environment", environment)} | {
    algorithm: _DEFAULT
    | _TUNED["default"].get(algorithm, {})
    | _TUNED.get(environment, {}).get(algorithm, {})
    for algorithm in algorithms.CONTROL
  }
  return config
