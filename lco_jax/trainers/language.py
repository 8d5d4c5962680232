"""The parts of language runs, from their settings.

Settings are plain values, from `settings.resolve`.
"""

import dataclasses
import math
from collections.abc import Mapping

from lco_jax import algorithms, checks, networks, tasks
from lco_jax.language import (
  generation,
  pairs,
  samplers,
  warm_start,
)
from lco_jax.language import training as language
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import program

WARM_START = "sft"
PAIRS = ("dpo", "rebel")
# Settings of the library that only models of many tokens need.
NOT_SET = (
  "num_microbatches",
  "chunk_tokens",
  "agreement_beta_multiple",
  "lora_rank",
  "lora_alpha",
)
# Settings of learning from rewards that pairs have no use for.
_NOT_OF_PAIRS = (
  "beta_rule",
  "entropy_coefficient",
  "length_penalty_tokens",
  "loss_temperature",
  "mask_truncated",
  "reference_coefficient",
  "reward_offset",
  "reward_scale",
  "stale_correction",
  "staleness",
  "value_clip",
)
# Settings that parameters depend on.
NETWORK = (
  "num_layers",
  "width",
  "num_heads",
  "num_kv_heads",
  "mlp_width",
  "tied_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run.

  Attributes:
    task: draws problems and verifies completions.
    model: the policy.
    training: of the policy.
    num_updates: of each seed.
  """

  task: tasks.Task
  model: networks.LanguageModel
  training: program.Training
  num_updates: int


def algorithm_names() -> tuple[str, ...]:
  """Lists the algorithms of language runs, those of plug-ins included."""
  return (*algorithms.ALGORITHMS, WARM_START, *PAIRS)


def shares(settings: Mapping) -> tuple[int, int]:
  """Numbers of which the number of devices must divide one: seeds, prompts."""
  prompts = math.gcd(settings["num_prompts"], settings["warm_start_prompts"])
  return run_lib.num_learners(settings), prompts


def build(settings: Mapping, task: tasks.Task | None = None) -> Run:
  """Builds a run; a ValueError names the setting that is wrong.

  Args:
    settings: of the run.
    task: to train on; None for the one that the settings name.
  """
  algorithm = settings["algorithm"]
  checks.check_choice("algorithm", algorithm, algorithm_names())
  settings_lib.check(
    settings,
    ("num_updates", "warm_start_prompts", "eval_problems", "eval_samples"),
  )
  if task is None:
    task = tasks.make(settings["task"])
  needed = task.prompt_length + task.completion_length
  if needed > settings["context_length"]:
    raise ValueError(
      f"context_length {settings['context_length']} is too short for"
      f" {task.name}: prompts of up to {task.prompt_length} tokens and"
      f" completions of {task.completion_length}"
    )
  config = networks.TransformerConfig(
    vocab_size=task.vocab_size,
    dtype=settings["dtype"],
    rematerialize=settings["rematerialize"],
    **{name: settings[name] for name in NETWORK},
  )
  if algorithm == WARM_START:
    return _supervised(settings, task, config)
  if algorithm in PAIRS:
    return _by_pairs(settings, task, config)
  return _from_rewards(settings, task, config)


def _supervised(
  settings: Mapping, task: tasks.Task, config: networks.TransformerConfig
) -> Run:
  """A run on right answers."""
  num_updates, rate = settings["warm_start_updates"], learning_rate(settings)
  if num_updates <= settings["learning_rate_warmup"]:
    raise ValueError(
      "warm_start_updates must be more than learning_rate_warmup"
      f" {settings['learning_rate_warmup']}, got {num_updates}"
    )
  if settings["policy_learning_rates"]:
    raise ValueError(
      f"policy_learning_rates: {WARM_START} has its own,"
      " warm_start_learning_rate"
    )
  checks.check_number("warm_start_learning_rate", rate, above=0.0)
  model = networks.make_language_model(config)
  training = warm_start.make_training(
    task,
    model,
    settings_lib.make_optimizer(settings, "policy", num_updates, rate),
    num_prompts=settings["warm_start_prompts"],
  )
  return Run(task, model, training, num_updates)


def _by_pairs(
  settings: Mapping, task: tasks.Task, config: networks.TransformerConfig
) -> Run:
  """A run on pairs of completions."""
  algorithm = settings["algorithm"]
  if settings["diagnostics"]:
    raise ValueError(f"diagnostics: {algorithm}'s loss is of pairs")
  if settings["max_kl"] is not None:
    raise ValueError(f"max_kl: {algorithm} has no KL that it could stop by")
  for field in dataclasses.fields(language.Options):
    changed = settings.get(field.name, field.default) != field.default
    if field.name in _NOT_OF_PAIRS and changed:
      raise ValueError(f"{field.name}: {algorithm} learns from pairs alone")
  options = settings_lib.take(
    settings,
    pairs.Options,
    without=pairs.ALGORITHMS["qrm"],
    group_size=2,
    chunk_tokens=0,
  )
  model = networks.make_language_model(config)
  training = pairs.make_training(
    model,
    algorithm,
    settings_lib.make_optimizer(settings, "policy", _optimizer_steps(settings)),
    samplers.make_sampler(
      task,
      model,
      options.num_samples,
      settings_lib.take(settings, generation.Sampling),
      part=pairs.source_of(algorithm),
    ),
    options,
  )
  return Run(task, model, training, settings["num_updates"])


def _from_rewards(
  settings: Mapping, task: tasks.Task, config: networks.TransformerConfig
) -> Run:
  """A run on the rewards of what the policy samples."""
  policy_options = settings_lib.options(settings, algorithms.options_by_name())
  row = algorithms.ALGORITHMS[settings["algorithm"]]
  options = settings_lib.take(
    settings, language.Options, without=NOT_SET, chunk_tokens=0
  )
  model = networks.make_language_model(config)
  setup = language.Setup(
    model,
    row,
    row.policy_loss(**policy_options),
    samplers.make_sampler(
      task,
      model,
      options.num_samples,
      settings_lib.take(settings, generation.Sampling),
      settings_lib.take(settings, samplers.RewardOptions),
    ),
    options,
    value_model=networks.make_value_model(config),
  )
  settings_lib.check_all_actions(
    policy_options, setup.knows_sampled_only, setup.advantage
  )
  training = language.make_training(
    setup,
    {
      part: settings_lib.make_optimizer(
        settings, part, _optimizer_steps(settings)
      )
      for part in (("policy", "value") if setup.uses_value else ("policy",))
    },
  )
  return Run(task, model, training, settings["num_updates"])


def _optimizer_steps(settings: Mapping) -> int:
  return (
    settings["num_updates"]
    * settings["num_epochs"]
    * settings["num_minibatches"]
  )


def learning_rate(settings: Mapping) -> float:
  """The policy's, of a run at one rate."""
  supervised = settings["algorithm"] == WARM_START
  part = "warm_start" if supervised else "policy"
  return settings[f"{part}_learning_rate"]
