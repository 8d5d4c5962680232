"""Settings of runs: one space of names, and none is filled in silently."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments.common import command_line, process_pool
from experiments.configs import (
  authors,
  comparison,
  control,
  stability_map,
  verifier,
)
from experiments.configs import language as language_config
from experiments.configs import llm as llm_config
from lco_jax import advantages, algorithms, targets
from lco_jax.language import generation, training
from lco_jax.trainers import llm
from lco_jax.trainers import settings as settings_lib
from lco_jax.trainers.configs import defaults, meanings
from tests import scripts, tiny_model


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


@pytest.mark.parametrize(
  "config",
  [comparison, control, language_config, llm_config, stability_map, verifier],
)
def test_every_setting_has_a_meaning(config, monkeypatch):
  monkeypatch.setattr(defaults, "_MEANINGS", dict(meanings.MEANINGS))
  for name in config.get_config():
    assert defaults.meaning(name) or name == "tuned", name


def test_help_lists_flags_and_settings():
  help_of = lambda *flags: scripts.run("train_control", *flags, "--help")
  done = help_of()
  assert done.returncode == 0 and not done.stderr
  assert done.stdout.startswith("Trains a policy for control")
  for flag in ("--workdir", "--config", "--resume", "--plugins", "--profile"):
    assert f"\n  {flag} " in done.stdout
  assert "--config.num_envs" not in done.stdout
  example = scripts.ROOT / "docs" / "examples" / "my_plugin.py"
  done = help_of(
    "--config=experiments/configs/control.py:two_states",
    "--config.num_envs=4",
    f"--plugins={example}",
  )
  assert done.returncode == 0
  assert "--config.num_envs=4" in done.stdout
  own = done.stdout.partition("--config.delta=None")[2]
  assert own.split()[0] == "lco_huber"
  assert max(map(len, done.stdout.splitlines())) <= 80
  wrong = help_of("--config=experiments/configs/none.py:x")
  assert wrong.returncode == 2 and "none.py" in wrong.complaint


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
  settings = settings_lib.resolve(config) | {"between_coefficient": 0.06}
  with pytest.raises(ValueError, match="between_coefficient"):
    llm.build(settings)


def test_the_authors_recipe_pulls_at_the_sampled_logit_alone():
  """By A/β at any policy: 1/2 for a right completion, 1/200 for a wrong one."""
  settings = _plain(authors.get_config())
  options = settings_lib.take(settings, training.Options, without=llm.NOT_SET)
  chosen = settings_lib.options(settings, algorithms.options_by_name())
  policy_loss = algorithms.make_policy_loss(settings["algorithm"], **chosen)
  reward = jnp.array([1.0, 0.0])
  advantage = options.reward_scale * reward + options.reward_offset
  np.testing.assert_array_equal(advantage, [1.0, -1.0])
  beta = targets.sign_dependent_beta(
    advantage, options.beta, options.nonpositive_beta_multiple
  )
  old, action = jnp.array([[0.3, 1.0, -1.0]] * 2), jnp.array([2, 0])
  batch = types.SimpleNamespace(
    action=action,
    advantage=advantage,
    old_logits=old,
    target_logits=targets.optimal_logits(
      old, advantages.sampled(advantage, action, 3), beta
    ),
    legal=None,
  )
  slope = jax.grad(lambda z: jnp.sum(policy_loss(z, batch)[0]))(3 * old + 1)
  np.testing.assert_allclose(
    slope, [[0, 0, -0.5], [0.005, 0, 0]], rtol=1e-5, atol=1e-7
  )
  # One batch, of which every minibatch is one step.
  assert (options.num_epochs, options.num_minibatches) == (1, 16)
  assert settings["num_updates"] == 1


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """Base of a run → settings of what stands in for packages of models."""
  monkeypatch.syspath_prepend(scripts.ROOT / "tests" / "stand_ins")
  path = tmp_path / "tiny.gguf"
  tiny_model.write_gguf(path, tiny_model.weights())
  return lambda base: [f"model={path}"] if "llm.py" in base else []


@pytest.mark.third_party
@pytest.mark.parametrize("kind", stability_map._KINDS)
def test_maps_are_of_runs_that_can_be(kind, installed):
  config = stability_map.get_config(kind)
  file, _, task = config.base.partition(":")
  last = config["values"][-1]  # `values` is a method.
  for algorithm in config.algorithms:
    process_pool.check_run(
      file,
      task,
      [
        *process_pool.split_settings(config.common_settings),
        f"algorithm={algorithm}",
        f"{config.rows}={last}",
        *installed(config.base),
      ],
    )
  process_pool.check_rates(config.policy_learning_rates, 1)


@pytest.mark.third_party
@pytest.mark.parametrize("kind", comparison._KINDS)
def test_comparisons_are_of_runs_that_can_be(kind, installed):
  config = comparison.get_config(kind)
  common = process_pool.split_settings(config.common_settings)
  for task in config.tasks:
    for variant in config.variants:
      name, _, own = (part.strip() for part in variant.partition(":"))
      settings = process_pool.split_settings(own or f"algorithm={name}")
      settings += installed(config.base)
      process_pool.check_run(config.base, task, [*common, *settings])


def test_settings_of_a_comparison_add_to_the_common_ones():
  config = {
    "base": "control.py",
    "common_settings": "num_seeds=8,hidden_sizes=(8,8),num_epochs=4",
    "settings": "num_epochs=2,total_steps=10",
  }
  joined = process_pool.join_settings(config)
  assert joined == {
    "base": "control.py",
    "settings": "num_seeds=8,hidden_sizes=(8,8),num_epochs=2,total_steps=10",
  }
  alone = {"settings": "num_seeds=2"}  # Of a user's own configuration file.
  assert process_pool.join_settings(alone) == alone
  quoted = "task_options='max_terms=3,max_digits=2',rewards=A,B,chat=don't"
  joined = process_pool.join_settings({"settings": quoted})
  assert process_pool.split_settings(joined["settings"]) == [
    "task_options=max_terms=3,max_digits=2",
    "rewards=A,B",
    "chat=don't",
  ]
  with pytest.raises(command_line.ScriptError, match="no closing quote"):
    process_pool.split_settings("task_options='max_terms=3,max_digits=2")
  with pytest.raises(command_line.ScriptError, match="want NAME=VALUE"):
    process_pool.join_settings(config | {"settings": "num_epochs"})


@pytest.mark.parametrize(
  ("changes", "steps"),
  [
    ({}, 20),
    ({"num_updates": 30}, 15),
    ({"num_updates": 10, "num_epochs": 2}, 10),
    ({"num_updates": 900, "warm_start_updates": 8}, 4),
    ({"num_updates": 30, "warm_start_updates": 0}, 15),
    ({"num_updates": 30, "learning_rate_warmup": 25}, 25),
  ],
)
def test_the_default_warm_up_fits_into_a_short_run(changes, steps):
  """One that is given stays as it is."""
  config = language_config.get_config("reversal")
  config.update(changes)
  assert settings_lib.resolve(config)["learning_rate_warmup"] == steps
