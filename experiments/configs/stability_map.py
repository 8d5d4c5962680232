"""Stability maps: --config=experiments/configs/stability_map.py:KIND."""

import ml_collections

_KINDS = ("control", "language")


def get_config(kind: str = "control") -> ml_collections.ConfigDict:
  """Settings of a stability map.

  Args:
    kind: `control` (CartPole-v1) or `language` (sorting).

  Raises:
    ValueError: if there is no such kind.
  """
  if kind not in _KINDS:
    raise ValueError(f"unknown map {kind!r}; known: {', '.join(_KINDS)}")
  config = ml_collections.ConfigDict()
  # The training script's config, FILE:ENVIRONMENT or FILE:TASK.
  config.base = "experiments/configs/control.py:CartPole-v1"
  config.algorithms = (
    "lco_mse",
    "lco_lch",
    "lco_kld",
    "ppo",
    "reinforce",
    "mdpo",
  )
  config.policy_learning_rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
  # Rows of the map: any setting of the training script, and its values.
  config.rows = "num_epochs"
  config.values = (1, 4, 10)
  # Other settings of all runs, NAME=VALUE,NAME=VALUE.
  config.settings = "num_seeds=8,total_steps=200000,eval_episodes=10"

  # A run has collapsed if it loses half of its gain; if its entropy is below
  # min_entropy, nats, with less than half of the best runs' gain; or if its
  # gradient norm exceeds max_gradient_norm (0 for no bound).
  config.min_entropy = 0.01
  config.max_gradient_norm = 0.0

  if kind == "language":
    config.base = "experiments/configs/language.py:sorting"
    config.policy_learning_rates = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    config.values = (1, 2, 4)
    config.settings = (
      "num_seeds=4,num_updates=60,num_prompts=16,num_samples=8,"
      "num_minibatches=2,warm_start_updates=80,eval_problems=128,eval_samples=8"
    )
  return config
