"""A run on a pretrained model from its settings, shared by the scripts.

Settings are plain values, from `settings.resolve`.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from lco_jax import (
  algorithms,
  checks,
  networks,
  pretrained,
  tasks,
  types,
)
from lco_jax.language import generation, host_sampler, pairs
from lco_jax.language import training as language
from lco_jax.networks import partitioning
from lco_jax.trainers import llm_task
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import accelerators, placement, program

# How a model that is not trained itself is held; the first is the default.
BASE_FORMATS = ("float32", *networks.NARROW_FORMATS)
# Settings of the library that need a value network, or small models.
NOT_SET = (
  "discount",
  "gae_lambda",
  "diagnostics",
  "value_learning_rate",
  "value_max_gradient_norm",
)
# Settings of earlier versions, whose runs cannot continue.
_DELETED = ("between_coefficient", "between_begin", "between_end")
# Parts of the parameters → those of a model.
PolicyOf = Callable[[Mapping[str, types.Params]], types.Params]
# Prompts whose length is checked before a run begins.
NUM_CHECKED_PROMPTS = 32


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run.

  Attributes:
    pretrained: the model that training begins with.
    model_config: of the policy's network.
    model: the policy's network.
    asking: turns problems into prompts.
    training: of the policy.
    num_updates: of each seed.
    given: {part: parameters} that training begins with, on the host, or
      StoredArrays.
    completes: parts of the parameters → those of the model that completes.
    learned: parts → the trained parameters, as the model takes them.
  """

  pretrained: pretrained.Pretrained
  model_config: networks.TransformerConfig
  model: networks.LanguageModel
  asking: host_sampler.Asking
  training: program.Training
  num_updates: int
  given: Mapping[str, types.Params]
  completes: PolicyOf
  learned: PolicyOf


def build(
  settings: Mapping,
  task: tasks.RowTask | None = None,
  mesh: str | None = None,
) -> Run:
  """Builds the training of a policy; errors name the setting or the file.

  Args:
    settings: of the run.
    task: to train on; None for the one that the settings name.
    mesh: that must divide the model, as of `placement.parse_sizes`.
  """
  # Raises for unknown options, before the model is read.
  settings_lib.options(settings, algorithms.options_by_name())
  row = algorithms.ALGORITHMS[settings["algorithm"]]
  common = _common(settings, mesh, task)
  common["pretrained"] = _narrow(settings, common["pretrained"])
  _check_evaluations(settings)
  verifier_model, verifiers, longest = _verifier(
    settings, row, common["pretrained"], placement.parse_sizes(mesh or "")
  )
  common["asking"] = _within(common["asking"], longest)
  training, completes = make_training(settings, common["model"], verifier_model)
  return Run(
    **common,
    training=training,
    given={"policy": common["pretrained"].params} | verifiers,
    completes=completes,
    learned=completes,
  )


def make_training(
  settings: Mapping,
  model: networks.LanguageModel,
  verifier_model: networks.LanguageModel | None = None,
) -> tuple[program.Training, PolicyOf]:
  """Makes the training of a policy.

  Args:
    settings: of the run.
    model: the policy's network.
    verifier_model: of a verifier that gives the advantages; None for none.

  Returns:
    (training, parts of the parameters → those of the policy).
  """
  policy_options = settings_lib.options(settings, algorithms.options_by_name())
  row = algorithms.ALGORITHMS[settings["algorithm"]]
  setup = language.Setup(
    model,
    row,
    row.policy_loss(**policy_options),
    host_sampler.make_sampler(
      settings["completion_length"], settings["max_visits"]
    ),
    settings_lib.take(settings, language.Options, without=NOT_SET),
    verifier_model=verifier_model,
    keeps_reference=False,
  )
  settings_lib.check_all_actions(
    policy_options, setup.knows_sampled_only, setup.advantage
  )
  num_steps = (
    settings["num_updates"]
    * settings["num_epochs"]
    * settings["num_minibatches"]
  )
  optimizer = settings_lib.make_optimizer(settings, "policy", num_steps)
  training = language.make_training(setup, {"policy": optimizer})
  return training, setup.policy_params


def _narrow(
  settings: Mapping, own: pretrained.Pretrained
) -> pretrained.Pretrained:
  """Holds the model in fewer bits, if the settings say so.

  Raises:
    ValueError: naming the setting, if the model itself is to be trained.
  """
  form = settings["base_format"]
  checks.check_choice("base_format", form, BASE_FORMATS)
  if form == BASE_FORMATS[0]:
    return own
  if not settings["lora_rank"]:
    raise ValueError(
      f"base_format: {form} needs lora_rank > 0: only adapters are trained then"
    )
  return dataclasses.replace(own, params=networks.narrow(own.params, form))


def check_placement(settings: Mapping, mesh: Mesh) -> None:
  """Checks what depends on the devices.

  Raises:
    ValueError: if a device's prompts do not divide into microbatches.
  """
  prompts = settings["num_prompts"] // placement.count_data_parts(mesh)
  if prompts % settings.get("num_microbatches", 1):
    raise ValueError(
      f"num_microbatches {settings['num_microbatches']} does not divide the"
      f" {prompts} prompts of a device"
    )


def choose_gather_dtype(
  config: networks.TransformerConfig, mesh: Mesh, gathers: bool | None
) -> str | None:
  """Chooses how generation takes weights that devices divide.

  Args:
    config: of the policy's network.
    mesh: of the run.
    gathers: whether they are gathered once; None if that takes at most half of
      a device's memory, or its memory is not known.

  Returns:
    The type to gather them in, or None; see `GroupGeneration`.
  """
  if gathers is None:
    model = networks.make_language_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    size = networks.count_numbers(params) * jnp.dtype(config.dtype).itemsize
    device = mesh.devices.flat[0]
    memory = accelerators.find_memory(device)
    divided = size / dict(mesh.shape).get(partitioning.TENSOR_AXIS, 1)
    gathers = memory is None or divided <= memory / 2
  return config.dtype if gathers else None


def build_verifier(settings: Mapping, mesh: str | None = None) -> Run:
  """Builds the training of a verifier; arguments are those of `build`."""
  settings_lib.options(  # Raises if one is set that it does not take.
    settings, {name: pairs.ALGORITHMS[name] for name in pairs.VERIFIERS}
  )
  common = _common(settings, mesh)
  training, completes = make_verifier_training(settings, common["model"])
  return Run(
    **common,
    training=training,
    given={"policy": common["pretrained"].params},
    completes=completes,
    learned=operator.itemgetter("policy"),
  )


def make_verifier_training(
  settings: Mapping, model: networks.LanguageModel
) -> tuple[program.Training, PolicyOf]:
  """Makes the training of a verifier, as `make_training` that of a policy."""
  algorithm = settings["algorithm"]
  num_steps = settings["num_updates"] * settings["num_epochs"]
  training = pairs.make_training(
    model,
    algorithm,
    settings_lib.make_optimizer(settings, "policy", num_steps),
    host_sampler.make_sampler(settings["completion_length"]),
    settings_lib.take(
      settings,
      pairs.Options,
      without=("group_size", "num_minibatches", *_unset_options(settings)),
    ),
  )
  return training, operator.itemgetter(pairs.source_of(algorithm))


def _unset_options(settings: Mapping) -> list[str]:
  """Options of the algorithms on pairs whose defaults hold."""
  names = {name for own in pairs.ALGORITHMS.values() for name in own}
  return [name for name in names if settings[name] is None]


def _common(
  settings: Mapping, mesh: str | None, task: tasks.RowTask | None = None
) -> dict[str, Any]:
  """The parts that every run has, as keyword arguments of Run."""
  settings_lib.check(
    settings,
    (
      "num_updates",
      "completion_length",
      "scoring_workers",
      "eval_problems",
      "eval_samples",
      "eval_batch",
    ),
    without=NOT_SET,
  )
  for name in _DELETED:
    if name in settings:
      raise ValueError(f"{name}: this version has no such setting")
  if len(settings["policy_learning_rates"]) > 1:
    raise ValueError("policy_learning_rates: pretrained models take one")
  checks.check_number(
    "generation_slots", settings["generation_slots"], at_least=0
  )
  for name in ("scoring_seconds", "temperature"):
    checks.check_number(name, settings[name], above=0.0)
  if task is None:
    task = llm_task.make_task(settings)
  has_messages = isinstance(task, tasks.RowTask) and any(
    "messages" in problem for own in task.problems.values() for problem in own
  )
  if has_messages and not settings["chat"]:
    raise ValueError("chat: must be True, since some rows have messages")
  sizes = placement.parse_sizes(mesh or "")
  if mesh is not None:
    placement.check_sizes(
      sizes,
      jax.device_count(),
      settings["num_seeds"],
      settings["num_prompts"],
    )
  own = _read_model(settings, settings["model"], sizes)
  if settings["chat"]:
    _warn_of_endless_answers(own.tokenizer)
  asking = host_sampler.Asking(
    task=task,
    tokenizer=own.tokenizer,
    instruction=settings["instruction"],
    chat=settings["chat"],
    completion_length=settings["completion_length"],
    context_length=own.context_length,
    sampling=settings_lib.take(settings, generation.Sampling),
    reward=llm_task.make_reward(settings, task),
    num_slots=settings["generation_slots"],
  )
  config = own.config_with(**take_model_options(settings))
  model = networks.make_language_model(config)
  return {
    "pretrained": own,
    "model_config": config,
    "model": model,
    "asking": _within(asking, own.context_length),
    "num_updates": settings["num_updates"],
  }


def take_model_options(settings: Mapping) -> dict[str, Any]:
  """Takes the settings that are fields of TransformerConfig."""
  names = ("dtype", "rematerialize", "attention_block")
  return {name: settings[name] for name in names}


def _read_model(
  settings: Mapping, name: str, sizes: Mapping[str, int]
) -> pretrained.Pretrained:
  """Reads a model that the axes of a mesh, of these sizes, divide.

  Of one that is divided, a process reads the parts of its devices later.
  """
  divides = placement.divides_parameters(sizes)
  read = pretrained.open_model if divides else pretrained.load
  return read(
    name,
    settings_lib.take(settings, pretrained.Options),
    lambda config: networks.check_divisible(config, sizes),
  )


def _warn_of_endless_answers(tokenizer: pretrained.Tokenizer) -> None:
  """Logs it if the chat template ends answers with no end-of-text token."""
  end = tokenizer.find_turn_end()
  if end is not None and end not in tokenizer.end:
    logging.warning(
      "%s: the chat template ends answers with %s, which is no end-of-text"
      " token, so answers may never end; set end_tokens",
      tokenizer.path,
      tokenizer.token(end),
    )


def _check_evaluations(settings: Mapping) -> None:
  """Checks that evaluations midway fall between chunks."""
  every = settings["eval_every"]
  checks.check_number("eval_every", every, at_least=0)
  chunk = settings["updates_per_chunk"] or program.default_chunk_length(
    settings["num_updates"]
  )
  if every % chunk:
    raise ValueError(
      f"eval_every {every} must be a multiple of updates_per_chunk {chunk}"
    )


def _within(
  asking: host_sampler.Asking, context_length: int
) -> host_sampler.Asking:
  """The same, of texts that are not longer than that.

  Raises:
    ValueError: if one of the first problems leaves no room for an answer.
  """
  asking = dataclasses.replace(
    asking, context_length=min(asking.context_length, context_length)
  )
  for number in range(NUM_CHECKED_PROMPTS):
    asking.prompt(asking.task.problem("train", number))
  return asking


def _verifier(
  settings: Mapping,
  row: algorithms.Algorithm,
  own: pretrained.Pretrained,
  sizes: Mapping[str, int],
) -> tuple[networks.LanguageModel | None, dict[str, types.Params], int]:
  """The verifiers of an advantage signal.

  Returns:
    Its model, its parts of the parameters, and the tokens of the longest text
    that it reads.

  Raises:
    ValueError: if one is missing, not asked for, or of other tokens.
  """
  advantage = settings["advantage"] or row.advantage
  names = {
    "verifier": ("verifier",),
    "preference": ("verifier", "verifier_reference"),
  }.get(advantage, ())
  for name in ("verifier", "verifier_reference"):
    if settings[name] is not None and name not in names:
      raise ValueError(f"{name}: {advantage} advantages ask none")
  if not names:
    return None, {}, own.context_length
  if settings["verifier"] is None:
    raise ValueError(f"verifier must be set for advantage {advantage}")
  found = {
    name: _read_model(settings, settings[name] or settings["model"], sizes)
    for name in names
  }
  for name, other in found.items():
    if other.tokenizer.vocabulary != own.tokenizer.vocabulary:
      raise ValueError(
        f"{name} {settings[name]}: its tokens are not those of"
        f" {settings['model']}"
      )
    if other.config != found["verifier"].config:
      raise ValueError(
        f"{name} {settings[name]}: its sizes are not those of"
        f" {settings['verifier']}"
      )
  config = dataclasses.replace(
    found["verifier"].config, **take_model_options(settings)
  )
  return (
    networks.make_language_model(config),
    {name: other.params for name, other in found.items()},
    min(other.context_length for other in found.values()),
  )
