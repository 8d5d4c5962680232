"""Settings of runs: one space of names, and none is filled in silently."""

import ml_collections
import pytest

from experiments.builders import llm
from experiments.common import settings as settings_lib
from experiments.configs import control, defaults
from experiments.configs import llm as llm_config
from lco_jax.language import generation


def _plain(config, **changes):
  settings = {k: v for k, v in config.to_dict().items() if k != "tuned"}
  return settings | changes


def test_two_settings_of_one_name_are_refused():
  config = ml_collections.ConfigDict({"clip_low": 0.1})
  with pytest.raises(ValueError, match="clip_low: two settings"):
    defaults.add_algorithm_options(config)
  config = ml_collections.ConfigDict({"top_k": 1})
  with pytest.raises(ValueError, match="top_k: two settings"):
    defaults.add_options(config, generation.Sampling)


def test_a_setting_that_is_missing_is_not_filled_in():
  settings = _plain(control.get_config())
  assert settings_lib.take(settings, settings_lib.RunOptions).num_seeds == 8
  del settings["keep_checkpoints"]
  with pytest.raises(KeyError, match="keep_checkpoints"):
    settings_lib.take(settings, settings_lib.RunOptions)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("seed", -1),
    ("seed", 2**31),
    ("num_seeds", 0),
    ("checkpoint_seconds", float("nan")),
    ("updates_per_chunk", 0),
    ("policy_max_gradient_norm", -1.0),
    ("policy_learning_rates", (1e-3, 1e-3)),
    ("learning_rate_schedule", "x"),
  ],
)
def test_what_every_run_has_is_checked(name, value):
  settings = _plain(control.get_config(), **{name: value})
  with pytest.raises(ValueError, match=name):
    settings_lib.check(settings, ())


def test_runs_with_deleted_settings_are_refused():
  config = llm_config.get_config("chain_sum")
  settings = _plain(
    config, beta=1.0, policy_learning_rate=1e-5, between_coefficient=0.06
  )
  with pytest.raises(ValueError, match="between_coefficient"):
    llm.build(settings)
