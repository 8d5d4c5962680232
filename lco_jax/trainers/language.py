"""Language runs from their settings: building, training, evaluating.

Settings are plain values, from `settings.resolve`.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from lco_jax import algorithms, checks, networks, tasks, types
from lco_jax.language import (
  evaluation,
  generation,
  pairs,
  samplers,
  signals,
  warm_start,
)
from lco_jax.language import training as language
from lco_jax.reporting import curves, statistics, tables
from lco_jax.runs import run_directory, runner
from lco_jax.trainers import extension
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.training import program

WARM_START = "sft"
PAIRS = ("dpo", "rebel")
# k of the pass@k that are reported.
_PASSES = (1, 8, 32)
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


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A run that is checked, and whose directory is open; from `prepare`.

  Attributes:
    run: the run.
    given: {part: parameters [seeds, ...]} from other runs.
    warm_launch: of the warm start, a run of its own; None without one.
    warm_run: the warm start; None without one.
  """

  run: Run
  given: dict[str, types.Params]
  warm_launch: run_lib.Launch | None
  warm_run: Run | None


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
    **{name: settings[name] for name in _NETWORK},
  )
  if algorithm == WARM_START:
    return _supervised(settings, task, config)
  if algorithm in PAIRS:
    return _by_pairs(settings, task, config)
  return _from_rewards(settings, task, config)


def prepare(
  stack: contextlib.ExitStack,
  launch: run_lib.Launch,
  task: tasks.Task | None = None,
) -> Prepared:
  """Builds a run and its warm start, checks both, and opens their directories.

  Args:
    stack: holds the directories.
    launch: of the run.
    task: to train on; None for the one that the settings name.

  Raises:
    ValueError: if anything is wrong, before anything is written.
    CheckpointError: if the run that this one begins with cannot be read.
  """
  settings = launch.settings
  run = build(settings, task)
  run_lib.make_mesh(settings, run.training)
  given, warm_launch, warm_run = _read_given(settings, run.task), None, None
  begins_here = settings["algorithm"] != WARM_START and "policy" not in given
  if begins_here and settings["warm_start_updates"]:
    # An extension of the run is none of the warm start.
    warm = extension.find_original(settings)
    warm |= {"algorithm": WARM_START, "policy_learning_rates": []}
    warm_run = build(warm, task)
    run_lib.make_mesh(warm, warm_run.training)
    warm_launch = dataclasses.replace(
      launch,
      settings=warm,
      workdir=launch.workdir and launch.workdir / "warm_start",
      resume_update=None,
      profile=False,
    )
  run_lib.open_directory(stack, launch)
  if warm_launch is not None:
    # A run may have been killed when it had but its own directory.
    there = (
      warm_launch.workdir is not None
      and (warm_launch.workdir / "config.json").exists()
    )
    run_lib.open_directory(
      stack, dataclasses.replace(warm_launch, resume=launch.resume and there)
    )
  return Prepared(run, given, warm_launch, warm_run)


def execute(launch: run_lib.Launch, prepared: Prepared) -> run_lib.Outcome:
  """Trains and evaluates a run, and writes what it came to.

  Args:
    launch: of the run.
    prepared: from `prepare`.

  Raises:
    InputError, FaultError, CheckpointError, StoppedError: as of `run.start`
      and `run.finish`.
  """
  run, settings = prepared.run, launch.settings
  given, before = dict(prepared.given), None
  if prepared.warm_launch is not None:
    warm_launch = dataclasses.replace(
      prepared.warm_launch, should_stop=launch.should_stop
    )
    warm = run_lib.finish(
      run_lib.start(warm_launch, prepared.warm_run.training),
      prepared.warm_run.num_updates,
    )
    given["policy"] = warm.params["policy"]
  first = jax.process_index() == 0
  if "policy" in given and first:
    with run_lib.input_errors():
      found = _evaluate(run, given["policy"], settings, "test")
      before = _summarize(found, settings, "test")
    launch.tell(f"before: {tables.format_accuracy(before)}")
  started = run_lib.start(launch, run.training, given=given)
  result = run_lib.finish(started, run.num_updates)
  reported = []
  if first:
    with run_lib.input_errors():
      reported = _report_all(started, run, result, before)
  return run_lib.Outcome(started, result, reported)


def _report_all(
  started: run_lib.Started,
  run: Run,
  result: runner.Result,
  before: dict | None,
) -> list[tuple[run_lib.Cell, dict]]:
  """Evaluates all learners, and reports each cell."""
  settings = started.launch.settings
  found = {
    name: (split, _evaluate(run, result.params["policy"], settings, split))
    for name, split in (("validation", "validation"), ("evaluation", "test"))
  }
  reported = []
  for cell in run_lib.cells(started.launch.workdir, settings):
    own = {
      name: _summarize(scores.select_seeds(cell.learners), settings, split)
      for name, (split, scores) in found.items()
    }
    summary = _report(started, cell, run, result, {"before": before} | own)
    reported.append((cell, summary))
  return reported


def _read_given(settings: Mapping, task: tasks.Task) -> dict[str, types.Params]:
  """Reads the parts of the parameters that come from other runs.

  Raises:
    ValueError: if one is missing, or does not fit.
    CheckpointError: if one cannot be read.
  """
  given = {}
  if settings["init_from"] is not None:
    parts = _params_of("init_from", task, settings)
    given["policy"] = parts["policy"]
  asks = settings["advantage"] in signals.FROM_VERIFIERS
  if asks and settings["verifier_from"] is None:
    raise ValueError(
      f"verifier_from must be set for advantage {settings['advantage']}"
    )
  if settings["verifier_from"] is not None:
    if not asks:
      raise ValueError(
        "verifier_from is for advantage"
        f" {' or '.join(signals.FROM_VERIFIERS)}, got {settings['advantage']}"
      )
    parts = _params_of("verifier_from", task, settings)
    given["verifier"] = parts["policy"]
    if settings["advantage"] == "preference":
      given["verifier_reference"] = parts["reference"]
  return given


def _evaluate(
  run: Run, params: types.Params, settings: Mapping, split: str
) -> evaluation.Evaluation:
  return evaluation.evaluate(
    run.task,
    run.model,
    params,
    split=split,
    num_problems=settings["eval_problems"],
    num_samples=settings["eval_samples"],
    seed=settings["seed"],
  )


def _summarize(
  found: evaluation.Evaluation, settings: Mapping, split: str
) -> dict:
  """Makes the evaluation's part of summary.json."""
  summary = statistics.summarize(found.greedy.mean(axis=1))
  return {
    "split": split,
    "problems": settings["eval_problems"],
    "samples": settings["eval_samples"],
    "greedy": summary["mean"],
    "pass_at_k": {
      str(k): statistics.summarize(found.pass_at_k(k))
      for k in _PASSES
      if k <= settings["eval_samples"]
    },
    "by_difficulty": {
      str(level): float(np.mean(scores))
      for level, scores in found.by_difficulty().items()
    },
    "examples": [list(example) for example in found.examples[0]],
    **summary,
  }


def _report(
  started: run_lib.Started,
  cell: run_lib.Cell,
  run: Run,
  result: runner.Result,
  evaluations: dict,
) -> dict:
  """Makes the summary of a cell; writes it and the picture."""
  settings = cell.settings
  logged = started.read_metrics(cell, ["correct", "entropy"])
  summary = {
    "task": run.task.name,
    "algorithm": settings["algorithm"],
    "learning_rate": learning_rate(settings),
    "num_seeds": settings["num_seeds"],
    "total_samples": result.total_steps,
    "compile_seconds": result.compile_seconds,
    "train_seconds": result.train_seconds,
    "samples_per_second": result.steps_per_second,
    **{
      f"final_{name}": statistics.summarize(
        curves.last_tenth(logged[name]).mean(0)
      )
      for name in ("correct", "entropy")
    },
    **evaluations,
  }
  if cell.workdir is not None:
    run_directory.write_json(cell.workdir / "summary.json", summary)
    curves.save_learning_curve(
      cell.workdir / run_directory.PICTURE,
      *curves.bin_returns(
        logged["env_steps"],
        logged["correct"],
        np.ones_like(logged["correct"]),
        gone=np.isnan(logged["correct"]),
      ),
      title=f"{settings['algorithm']} on {run.task.name}",
      x_label="samples",
      y_label="share of correct samples (training prompts)",
    )
  return summary


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


def _params_of(
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
  path = pathlib.Path(own[setting])

  def check(fits: bool, reason: str):
    if not fits:
      raise ValueError(f"{setting} {own[setting]}: {reason}")

  try:
    theirs = run_directory.read_config(path)
  except ValueError as error:
    raise ValueError(f"{setting}: {error}") from None
  for name in own:
    check(
      name in theirs,
      f"not a language run of this version, its config.json has no {name}",
    )
  check(
    not theirs["policy_learning_rates"],
    "it has several policy_learning_rates; train it at one",
  )
  if setting == "verifier_from" and own["advantage"] == "preference":
    check(
      theirs["algorithm"] == "dpo",
      f"its algorithm is {theirs['algorithm']}, but preferences are of dpo",
    )
  other = build(theirs)
  check(
    other.task.characters == task.characters,
    f"its vocabulary is {other.task.characters!r}, not {task.characters!r}",
  )
  for name in _NETWORK:
    check(
      theirs[name] == own[name],
      f"its {name} is {theirs[name]}, not {own[name]}",
    )
  check(
    theirs["num_seeds"] in (1, own["num_seeds"]),
    f"it has {theirs['num_seeds']} seeds, not {own['num_seeds']} or 1",
  )
  update, parts = run_lib.restore_params(path, theirs, other.training)
  check(
    update == other.num_updates,
    f"not finished, at update {update} of {other.num_updates}",
  )
  return jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (own["num_seeds"], *leaf.shape[1:])),
    parts,
  )
