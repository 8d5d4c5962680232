"""A run on a pretrained model from its settings: what the scripts share.

Settings are plain values, from `command_line.read_settings`.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from experiments.common import settings as settings_lib
from lco_jax import algorithms, networks, numerics, pretrained, tasks, types
from lco_jax.language import generation, host_sampler, pairs
from lco_jax.language import training as language
from lco_jax.training import program

REWARDS = ("exact", "score")
# Parts of the parameters → those of a model.
PolicyOf = Callable[[Mapping[str, types.Params]], types.Params]
# Prompts whose length is looked at before a run begins.
PROMPTS_LOOKED_AT = 32


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run consists of.

  Attributes:
    pretrained: what it begins with.
    model_config: of the policy's network.
    model: the policy's network.
    asking: how the model is asked.
    training: of the policy.
    num_updates: of each seed.
    given: {part: parameters} that training begins with, on the host.
    completes: parts of the parameters → those of the model that completes.
    learned: parts → what training came to, as the model's parameters.
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


def build(settings: Mapping) -> Run:
  """Builds the training of a policy.

  Args:
    settings: plain values, from `command_line.read_settings`.

  Raises:
    ValueError: naming the setting, or the file, that is wrong.
  """
  policy_options = settings_lib.options(settings, algorithms.options_by_name())
  row = algorithms.ALGORITHMS[settings["algorithm"]]
  common = _common(settings)
  verifier_model, verifiers, longest = _verifier(
    settings, row, common["pretrained"]
  )
  common["asking"] = _within(common["asking"], longest)
  setup = language.Setup(
    common["model"],
    row,
    row.policy_loss(**policy_options),
    host_sampler.make_sampler(
      settings["completion_length"], settings["max_visits"]
    ),
    settings_lib.take(settings, language.Options),
    verifier_model=verifier_model,
    keeps_reference=False,
  )
  num_steps = (
    settings["num_updates"]
    * settings["num_epochs"]
    * settings["num_minibatches"]
  )
  optimizer = settings_lib.make_optimizer(settings, "policy", num_steps)
  return Run(
    **common,
    training=language.make_training(setup, {"policy": optimizer}),
    given={"policy": common["pretrained"].params} | verifiers,
    completes=setup.policy_params,
    learned=setup.policy_params,
  )


def check_placement(settings: Mapping, mesh: Mesh) -> None:
  """Checks what depends on the devices.

  Raises:
    ValueError: if a device's prompts do not divide into microbatches.
  """
  prompts = settings["num_prompts"] // mesh.shape[numerics.DEVICE_AXIS]
  if prompts % settings.get("num_microbatches", 1):
    raise ValueError(
      f"num_microbatches {settings['num_microbatches']} does not divide the"
      f" {prompts} prompts of a device"
    )


def build_verifier(settings: Mapping) -> Run:
  """Builds the training of a verifier.

  Args:
    settings: plain values, from `command_line.read_settings`.

  Raises:
    ValueError: naming the setting, or the file, that is wrong.
  """
  algorithm = settings["algorithm"]
  options = settings_lib.options(
    settings, {name: pairs.ALGORITHMS[name] for name in pairs.VERIFIERS}
  )
  common = _common(settings)
  num_steps = settings["num_updates"] * settings["num_epochs"]
  return Run(
    **common,
    training=pairs.make_training(
      common["model"],
      algorithm,
      settings_lib.make_optimizer(settings, "policy", num_steps),
      host_sampler.make_sampler(settings["completion_length"]),
      pairs.Options(
        **{
          name: settings[name]
          for name in (
            "num_prompts",
            "num_samples",
            "num_epochs",
            "chunk_tokens",
          )
        },
        **options,
      ),
    ),
    given={"policy": common["pretrained"].params},
    completes=operator.itemgetter(pairs.source_of(algorithm)),
    learned=operator.itemgetter("policy"),
  )


def _common(settings: Mapping) -> dict[str, Any]:
  """What every run consists of, as keyword arguments of Run."""
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
  )
  if settings["policy_learning_rates"]:
    raise ValueError(
      "policy_learning_rates: pretrained models take one policy_learning_rate"
    )
  if settings["reward"] not in REWARDS:
    raise ValueError(
      f"reward: unknown {settings['reward']!r}; known: {', '.join(REWARDS)}"
    )
  for name in ("scoring_seconds", "temperature"):
    if not 0 < settings[name] < float("inf"):
      raise ValueError(
        f"{name} must be positive and finite, got {settings[name]}"
      )
  task = tasks.make_text_task(
    settings["task"],
    task_options(settings["task_options"]),
    settings["extraction"],
  )
  sampling = generation.Sampling(
    settings["temperature"], settings["top_k"], settings["top_p"]
  )
  own = pretrained.load(settings["model"])
  asking = host_sampler.Asking(
    task=task,
    tokenizer=own.tokenizer,
    instruction=settings["instruction"],
    chat=settings["chat"],
    completion_length=settings["completion_length"],
    context_length=own.context_length,
    sampling=sampling,
    exact=settings["reward"] == "exact",
  )
  config = own.config_with(
    dtype=settings["dtype"], rematerialize=settings["rematerialize"]
  )
  model = networks.make_language_model(config)
  return {
    "pretrained": own,
    "model_config": config,
    "model": model,
    "asking": _within(asking, own.context_length),
    "num_updates": settings["num_updates"],
  }


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
  for number in range(PROMPTS_LOOKED_AT):
    asking.prompt(asking.task.problem("train", number)["question"])
  return asking


def _verifier(
  settings: Mapping,
  row: algorithms.Algorithm,
  own: pretrained.Pretrained,
) -> tuple[networks.LanguageModel | None, dict[str, types.Params], int]:
  """What a verifier's advantages ask.

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
    name: pretrained.load(settings[name] or settings["model"]) for name in names
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
    found["verifier"].config, dtype=settings["dtype"]
  )
  return (
    networks.make_language_model(config),
    {name: other.params for name, other in found.items()},
    min(other.context_length for other in found.values()),
  )


def task_options(text: str) -> dict[str, Any]:
  """Options of a task from "name=value,...": numbers, true, false, or words.

  Raises:
    ValueError: if the text is not of that form.
  """
  found = {}
  for item in filter(None, text.split(",")):
    name, equals, value = (part.strip() for part in item.partition("="))
    if not (name and equals and value):
      raise ValueError(f'task_options: want "name=value,...", got {text!r}')
    found[name] = _value(value)
  return found


def _value(text: str) -> Any:
  if text in ("true", "false"):
    return text == "true"
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      continue
  return text
