"""Stability maps: --config=experiments/configs/stability_map.py:KIND.

control, language                      epochs on each batch
control_steps, language_steps          optimizer steps on each batch
control_staleness, language_staleness  updates that the sampler is behind
pretrained                             optimizer steps, on a pretrained model
"""

import ml_collections

_CONTROL = {
  # The training script's config, FILE:ENVIRONMENT or FILE:TASK.
  "base": "experiments/configs/control.py:CartPole-v1",
  "algorithms": (
    *("lco_mse", "lco_lch", "lco_kld", "ppo", "reinforce", "mdpo"),
  ),
  # Whose score is subtracted from the others', if it is in the map; "": none.
  "against": "ppo",
  "policy_learning_rates": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
  # Rows of the map: any setting of the training script, and its values.
  "rows": "num_epochs",
  "values": (1, 4, 10),
  # Other settings of all runs, NAME=VALUE,NAME=VALUE.
  "settings": "num_seeds=8,total_steps=200000,eval_episodes=10",
}
_LANGUAGE = _CONTROL | {
  "base": "experiments/configs/language.py:sorting",
  "policy_learning_rates": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
  "values": (1, 2, 4),
  "settings": (
    "num_seeds=4,num_updates=60,num_prompts=16,num_samples=8,"
    "num_minibatches=2,warm_start_updates=80,eval_problems=128,eval_samples=8"
  ),
}
# Old data: many actions, where targets of one sampled action differ.
_MANY_ACTIONS = _CONTROL | {
  "base": "experiments/configs/control.py:Pendulum-v1",
  "algorithms": ("lco_fisher", "ppo"),
  "policy_learning_rates": (1e-3, 3e-3, 1e-2, 3e-2),
}
_REVERSAL = _LANGUAGE | {
  "base": "experiments/configs/language.py:reversal",
  "algorithms": ("lco_fisher", "lco_mse", "grpo"),
  "against": "grpo",
  "policy_learning_rates": (3e-5, 1e-4, 3e-4, 1e-3),
}
_OLD_DATA = {
  "num_seeds": 8,
  "total_steps": 409600,
  "eval_episodes": 1,
}
_OLD_BATCHES = {
  "num_seeds": 4,
  "num_updates": 80,
  "num_prompts": 16,
  "num_samples": 8,
  "warm_start_updates": 80,
  "eval_problems": 128,
  "eval_samples": 8,
}


def _join(settings: dict, **more) -> str:
  return ",".join(f"{k}={v}" for k, v in (settings | more).items())


_KINDS = {
  "control": _CONTROL,
  "language": _LANGUAGE,
  # One minibatch: a pass is one step.
  "control_steps": _MANY_ACTIONS
  | {
    "values": (1, 4, 16, 64),
    "settings": _join(_OLD_DATA, num_minibatches=1),
  },
  "language_steps": _REVERSAL
  | {
    "algorithms": ("lco_fisher", "grpo"),
    "policy_learning_rates": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "values": (1, 4, 16, 64),
    "settings": _join(_OLD_BATCHES, num_minibatches=1),
  },
  "control_staleness": _MANY_ACTIONS
  | {
    "rows": "staleness",
    "values": (0, 1, 4, 16),
    "settings": _join(_OLD_DATA, num_epochs=10),
  },
  # One pass over each batch, in 1 or 4 minibatches.
  "pretrained": _LANGUAGE
  | {
    "base": "experiments/configs/llm.py:chain_sum",
    "algorithms": ("lco_fisher", "grpo"),
    "against": "grpo",
    "policy_learning_rates": (3e-6, 1e-5, 3e-5, 1e-4),
    "rows": "num_minibatches",
    "values": (1, 4),
    "settings": "num_seeds=2,num_updates=40,num_prompts=8,max_visits=1",
  },
  "language_staleness": _REVERSAL
  | {
    "rows": "staleness",
    "values": (0, 1, 4, 16),
    "settings": _join(_OLD_BATCHES, num_minibatches=4),
  },
}


def get_config(kind: str = "control") -> ml_collections.ConfigDict:
  """Settings of a stability map.

  Args:
    kind: a key of _KINDS.

  Raises:
    ValueError: if there is no such kind.
  """
  if kind not in _KINDS:
    raise ValueError(f"unknown map {kind!r}; known: {', '.join(_KINDS)}")
  config = ml_collections.ConfigDict(_KINDS[kind])
  # `settings` adds to these; of two with one name it holds.
  config.common_settings, config.settings = config.settings, ""
  # A run has collapsed if it loses half of its gain; if its entropy is below
  # min_entropy, nats, with less than half of the best runs' gain; or if its
  # gradient norm exceeds max_gradient_norm (0 for no bound).
  config.min_entropy = 0.01
  config.max_gradient_norm = 0.0
  return config
