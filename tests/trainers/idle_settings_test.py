import ml_collections
import pytest

from lco_jax.trainers import idle_settings, settings
from lco_jax.trainers.configs import control, language


def _resolve(config: ml_collections.ConfigDict, **changes):
  config.update(changes)
  return settings.resolve(config)


_CASES = [
  (control, {"algorithm": "ppo"}, "beta", "optimal target"),
  (control, {"algorithm": "lco_mse"}, "beta", None),
  (control, {"algorithm": "lco_mse"}, "gae_lambda", None),
  (
    control,
    {"algorithm": "ppo", "num_epochs": 1, "num_minibatches": 1},
    "clip_low",
    "no ratio",
  ),
  (control, {"algorithm": "ppo"}, "clip_low", None),
  (
    control,
    {"algorithm": "lco_mse", "clip": 0.2, "num_epochs": 1}
    | {"num_minibatches": 1, "staleness": 1},
    "clip",
    None,
  ),
  (
    control,
    {"policy_learning_rates": (1.0, 2.0)},
    "policy_learning_rate",
    "are given",
  ),
  (control, {"staleness": 2}, "stale_ratio", "correction is none"),
  (control, {"stale_correction": "masked"}, "stale_correction", "staleness"),
  (control, {"beta_rule": "feedback"}, "kl_budget", None),
  (control, {}, "kl_budget", "fixed"),
  (control, {"algorithm": "vmpo"}, "dual_bound", None),
  (language, {"algorithm": "grpo"}, "gae_lambda", "need no values"),
  (language, {"algorithm": "ppo"}, "gae_lambda", None),
  (language, {"algorithm": "ppo"}, "num_known", "no verifier"),
  (language, {}, "reference_kl", "is 0"),
  (language, {"reference_coefficient": 0.1}, "reference_kl", None),
  (language, {"algorithm": "sft"}, "num_updates", "warm_start_updates"),
  (language, {"warm_start_updates": 0}, "warm_start_prompts", "is 0"),
  (language, {"init_from": "runs/a"}, "warm_start_updates", "init_from"),
]


@pytest.mark.parametrize(("config", "changes", "name", "reason"), _CASES)
def test_settings_without_effect(config, changes, name, reason):
  problem = "CartPole-v1" if config is control else "parity"
  found = _resolve(config.get_config(problem), **changes)
  lines = idle_settings.find_idle(found, [name])
  assert len(lines) == (reason is not None)
  assert all(x.startswith(f"{name}: ") and reason in x for x in lines)
  assert set(lines) <= set(idle_settings.find_idle(found))


_OTHER_VALUES = {
  "num_updates": 10,
  "warm_start_updates": 10,
  "warm_start_prompts": 3,
  "reference_kl": "k1",
}


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    ({"algorithm": "sft"}, "num_updates"),
    ({"init_from": "runs/a"}, "warm_start_updates"),
    ({"warm_start_updates": 0}, "warm_start_prompts"),
    ({}, "reference_kl"),
  ],
)
def test_no_other_setting_depends_on_an_idle_one(changes, name):
  """Such as the warm-up, which follows the length of the run."""
  config = language.get_config("parity")
  found = _resolve(config, **changes)
  assert idle_settings.find_idle(found, [name])
  config = language.get_config("parity")
  other = _resolve(config, **changes, **{name: _OTHER_VALUES[name]})
  assert found[name] != other.pop(name)
  found.pop(name)
  assert found == other
