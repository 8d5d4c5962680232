"""A language run from its settings: what the scripts share.

Settings are plain values, from `command_line.read_settings`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from experiments.common import settings as settings_lib
from experiments.common import training_run
from lco_jax import algorithms
from lco_jax import networks
from lco_jax import tasks
from lco_jax import types
from lco_jax.language import generation
from lco_jax.language import preference
from lco_jax.language import training as training_lib
from lco_jax.language import warm_start
from lco_jax.runs import run_directory
from lco_jax.runs import runner
from lco_jax.training import placement
from lco_jax.training import program

WARM_START = "sft"
ALGORITHMS = (
  *algorithms.ALGORITHMS,
  WARM_START,
  *preference.ALGORITHMS,
)
# Settings that parameters depend on.
_NETWORK = (
  "num_layers",
  "width",
  "num_heads",
  "num_kv_heads",
  "mlp_width",
  "tied_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run consists of.

  Attributes:
    task: asks and verifies.
    model: the policy.
    training: of the policy.
    num_updates: of each seed.
  """

  task: tasks.Task
  model: networks.LanguageModel
  training: program.Training
  num_updates: int


def build(settings: Mapping) -> Run:
  """Builds a run.

  Args:
    settings: plain values, from `command_line.read_settings`.

  Raises:
    ValueError: naming the setting that is wrong.
  """
  algorithm = settings["algorithm"]
  if algorithm not in ALGORITHMS:
    raise ValueError(
      f"algorithm: unknown {algorithm!r}; known: {', '.join(ALGORITHMS)}"
    )
  settings_lib.check(
    settings,
    (
      "num_updates",
      "num_prompts",
      "num_samples",
      "warm_start_prompts",
      "eval_problems",
      "eval_samples",
    ),
  )
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
    **{name: settings[name] for name in _NETWORK},
  )
  model = networks.make_language_model(config)
  if algorithm == WARM_START:
    num_updates = settings["warm_start_updates"]
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
    rate = learning_rate(settings)
    if not 0 < rate < math.inf:
      raise ValueError(
        f"warm_start_learning_rate must be positive and finite, got {rate}"
      )
    optimizer = settings_lib.make_optimizer(
      settings, "policy", num_updates, rate
    )
    supervised = warm_start.make_training(
      task, model, optimizer, num_prompts=settings["warm_start_prompts"]
    )
    return Run(task, model, supervised, num_updates)
  num_steps = (
    settings["num_updates"]
    * settings["num_epochs"]
    * settings["num_minibatches"]
  )
  sampling = generation.Sampling(
    settings["temperature"], settings["top_k"], settings["top_p"]
  )
  common = {
    name: settings[name]
    for name in ("num_prompts", "num_epochs", "num_minibatches", "beta")
  }
  if algorithm in preference.ALGORITHMS:
    if settings["diagnostics"]:
      raise ValueError(f"diagnostics: {algorithm}'s loss is of pairs")
    if settings["max_kl"] is not None:
      raise ValueError(f"max_kl: {algorithm} has no KL that it could stop by")
    if settings["num_samples"] % 2:
      raise ValueError(
        f"num_samples must be even for {algorithm}, got"
        f" {settings['num_samples']}"
      )
    pairs = preference.make_training(
      task,
      model,
      settings_lib.make_optimizer(settings, "policy", num_steps),
      algorithm=algorithm,
      num_pairs=settings["num_samples"] // 2,
      sampling=sampling,
      **common,
    )
    return Run(task, model, pairs, settings["num_updates"])
  row = algorithms.ALGORITHMS[algorithm]
  policy_loss = row.policy_loss(
    **settings_lib.options(
      settings, algorithms.options_by_name()
    )
  )
  if settings["diagnostics"] and row.of_sequences:
    raise ValueError(
      f"diagnostics: {algorithm}'s loss is of sequences, not of tokens"
    )
  parts, value_model = ["policy"], None
  if (settings["advantage"] or row.advantage) == "learned":
    parts, value_model = ["policy", "value"], networks.make_value_model(config)
  return Run(
    task,
    model,
    training_lib.make_training(
      task,
      model,
      row,
      policy_loss,
      {
        part: settings_lib.make_optimizer(settings, part, num_steps)
        for part in parts
      },
      value_model=value_model,
      diagnose=settings["diagnostics"],
      sampling=sampling,
      **common,
      **{
        name: settings[name]
        for name in (
          "num_samples",
          "nonpositive_beta_multiple",
          "advantage",
          "discount",
          "gae_lambda",
          "num_known",
          "dual_bound",
          "entropy_coefficient",
          "reference_coefficient",
          "max_kl",
          "reward",
          "reward_noise",
        )
      },
    ),
    settings["num_updates"],
  )


def learning_rate(settings: Mapping) -> float:
  """The policy's, of a run at one rate."""
  supervised = settings["algorithm"] == WARM_START
  part = "warm_start" if supervised else "policy"
  return settings[f"{part}_learning_rate"]


def params_of(
  setting: str, task: tasks.Task, own: Mapping
) -> dict[str, types.Params]:
  """The parameters at the end of another run.

  Args:
    setting: the one that names the run's directory.
    task: of this run.
    own: settings of this run, whose network the other must have.

  Returns:
    {part: parameters [seeds, ...]} on the host, for the seeds of this run.

  Raises:
    ValueError: if it holds no finished run, or one of another vocabulary,
      network or number of seeds.
    CheckpointError: if its checkpoint cannot be read.
  """
  directory = own[setting]
  path = pathlib.Path(directory)
  try:
    theirs = run_directory.read_config(path)
  except ValueError as error:
    raise ValueError(f"{setting}: {error}") from None
  for name in own:
    if name not in theirs:
      raise ValueError(
        f"{setting} {directory}: not a language run of this version, its"
        f" config.json has no {name}"
      )
  if theirs["policy_learning_rates"]:
    raise ValueError(
      f"{setting} {directory}: it has several policy_learning_rates; train it"
      " at one"
    )
  asks = setting == "verifier_from" and own["advantage"] == "preference"
  if asks and theirs["algorithm"] != "dpo":
    raise ValueError(
      f"{setting} {directory}: its algorithm is {theirs['algorithm']}, but"
      " preferences are of dpo"
    )
  other = build(theirs)
  if other.task.characters != task.characters:
    raise ValueError(
      f"{setting} {directory}: its vocabulary is {other.task.characters!r},"
      f" not {task.characters!r}"
    )
  for name in _NETWORK:
    if theirs[name] != own[name]:
      raise ValueError(
        f"{setting} {directory}: its {name} is {theirs[name]}, not {own[name]}"
      )
  if theirs["num_seeds"] not in (1, own["num_seeds"]):
    raise ValueError(
      f"{setting} {directory}: it has {theirs['num_seeds']} seeds, not"
      f" {own['num_seeds']} or 1"
    )
  here = placement.make_mesh(
    theirs["num_seeds"], other.training.num_streams, jax.local_devices()[:1]
  )
  start = runner.begin(other.training, training_run.seeds_of(theirs), here)
  like = placement.to_host(start.state)
  update, state, _ = training_run.checkpoints(path, theirs).restore(like)
  if update != other.num_updates:
    raise ValueError(
      f"{setting} {directory}: not finished, at update {update} of"
      f" {other.num_updates}"
    )
  return jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (own["num_seeds"], *leaf.shape[1:])),
    state.params,
  )
