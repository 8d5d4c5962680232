"""Training from Python: `lco_jax.train`, `train_language`, `train_llm`.

The functions do what the scripts of the same names do. They need neither flags
nor a directory.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import ml_collections
import numpy as np

from lco_jax import checks, environments, tasks
from lco_jax.runs import run_directory
from lco_jax.tasks import rewards as rewards_lib
from lco_jax.tasks import rows as rows_lib
from lco_jax.trainers import (
  control,
  idle_settings,
  language,
  language_training,
  llm,
  llm_task,
  llm_training,
  policies,
  policy_reading,
)
from lco_jax.trainers import run as run_lib
from lco_jax.trainers import settings as settings_lib
from lco_jax.trainers.configs import control as control_config
from lco_jax.trainers.configs import language as language_config
from lco_jax.trainers.configs import llm as llm_config
from lco_jax.training import cpu_backend

_Policy = TypeVar("_Policy", bound=policies.Policy)


@dataclasses.dataclass(frozen=True)
class Trained(Generic[_Policy]):
  """The result of `train`, `train_language` or `train_llm`.

  Attributes:
    settings: of the run, {name: value}.
    summary: final scores and times, as summary.json has them.
    metrics: {name: float[updates, seeds]}, and "env_steps", float[updates]:
      environment steps, or samples, of each seed.
    policies: one for each seed.
  """

  settings: Mapping[str, Any]
  summary: Mapping[str, Any]
  metrics: Mapping[str, np.ndarray]
  policies: Sequence[_Policy]


def train(
  environment: str | environments.Environment | environments.HostEnvironment,
  algorithm: str = "lco_mse",
  *,
  num_seeds: int = 8,
  total_steps: int | None = None,
  workdir: str | pathlib.Path | None = None,
  resume: bool = False,
  show_progress: bool = True,
  **options: Any,
) -> Trained[policies.ControlPolicy]:
  """Trains policies for control, one for each seed.

  Call it before other computations with JAX: then it uses all cores of a CPU.

  Args:
    environment: an id, see `lco_jax.environments`; or an environment itself.
    algorithm: a name of `lco_jax.algorithms.CONTROL`.
    num_seeds: seeds, trained side by side.
    total_steps: environment steps of each seed; None for the environment's
      default.
    workdir: new or empty directory, which gets the files that
      `experiments.train_control` writes; None to write nothing.
    resume: whether to go on with the run in `workdir`.
    show_progress: whether to draw a progress bar on standard error, and to
      print lines such as settings without effect.
    **options: other settings, by the names of
      experiments/configs/control.py. `python -m experiments.train_control
      --config=experiments/configs/control.py:ID --help` lists them.

  Raises:
    ValueError: naming the setting that is wrong, before anything is written.
    FaultError: if an update is not finite.
    CheckpointError: if a checkpoint cannot be read or written.
  """
  own, name = _take_own(
    environment,
    environments.Environment | environments.HostEnvironment,
    "environment",
  )
  launch = _make_launch(
    control_config.get_config(name),
    options
    | {"algorithm": algorithm, "num_seeds": num_seeds}
    | ({} if total_steps is None else {"total_steps": total_steps}),
    workdir,
    resume,
    show_progress,
  )
  cpu_backend.divide_cores(num_seeds, warn=False)
  with contextlib.ExitStack() as stack:
    run = control.prepare(stack, launch, own)
    return _gather(control.execute(stack, launch, run), run)


def train_language(
  task: str | tasks.Task,
  algorithm: str = "lco_kld",
  *,
  num_seeds: int = 4,
  num_updates: int | None = None,
  workdir: str | pathlib.Path | None = None,
  resume: bool = False,
  show_progress: bool = True,
  **options: Any,
) -> Trained[policies.LanguagePolicy]:
  """Trains policies for a small language task, one for each seed.

  A supervised warm start comes first, unless warm_start_updates is 0. Call it
  before other computations with JAX: then it uses all cores of a CPU.

  Args:
    task: an id, see `lco_jax.tasks`; or a task itself.
    algorithm: a name of `lco_jax.algorithms.ALGORITHMS`, or sft, dpo or rebel.
    num_seeds: seeds, trained side by side.
    num_updates: updates of each seed; None for the task's default.
    workdir: new or empty directory, which gets the files that
      `experiments.train_language` writes; None to write nothing.
    resume: whether to go on with the run in `workdir`.
    show_progress: whether to draw a progress bar on standard error, and to
      print lines such as settings without effect.
    **options: other settings, by the names of
      experiments/configs/language.py. `python -m experiments.train_language
      --config=experiments/configs/language.py:TASK --help` lists them.

  Raises:
    ValueError: naming the setting that is wrong, before anything is written.
    FaultError: if an update is not finite.
    CheckpointError: if a checkpoint cannot be read or written.
  """
  own, name = _take_own(task, tasks.Task, "task")
  launch = _make_launch(
    language_config.get_config(name),
    options
    | {"algorithm": algorithm, "num_seeds": num_seeds}
    | ({} if num_updates is None else {"num_updates": num_updates}),
    workdir,
    resume,
    show_progress,
  )
  cpu_backend.divide_cores(*language.shares(launch.settings), warn=False)
  with contextlib.ExitStack() as stack:
    prepared = language_training.prepare(stack, launch, own)
    return _gather(language_training.execute(launch, prepared), prepared.run)


def train_llm(
  model: str,
  rows: str | pathlib.Path | Sequence[Mapping[str, Any]],
  rewards: str | Sequence[Any],
  algorithm: str = "lco_mse",
  *,
  validation: str | pathlib.Path | Sequence[Mapping[str, Any]] | None = None,
  test: str | pathlib.Path | Sequence[Mapping[str, Any]] | None = None,
  num_seeds: int = 1,
  num_updates: int | None = None,
  workdir: str | pathlib.Path | None = None,
  resume: bool = False,
  show_progress: bool = True,
  **options: Any,
) -> Trained[policies.TextPolicy]:
  """Trains a pretrained language model on rows of data.

  Rewards run in processes of their own, which import your script: put the call
  under `if __name__ == "__main__":`.

  Args:
    model: smollm2, a GGUF file, or a folder of safetensors.
    rows: a file of JSON Lines or Parquet, or dicts. Each has a `question`, or
      `messages`, and any other columns.
    rewards: functions (completion: str, row: dict) → float, or pairs of a
      function and its weight; they are defined at the top of a module. Or names
      as in `--config.rewards`. The first decides whether a completion is
      correct: at ≥ 1.
    algorithm: a name of `lco_jax.algorithms.ALGORITHMS` that learns from
      rewards.
    validation: rows to validate on; None takes some of `rows`.
    test: rows to test on; None takes some of `rows`.
    num_seeds: seeds, trained side by side.
    num_updates: updates of each seed; None for the default.
    workdir: new or empty directory, which gets the files that
      `experiments.train_llm` writes; None to write nothing.
    resume: whether to go on with the run in `workdir`.
    show_progress: whether to draw a progress bar on standard error, and to
      print lines such as settings without effect.
    **options: other settings, by the names of experiments/configs/llm.py.
      `python -m experiments.train_llm
      --config=experiments/configs/llm.py:data --help` lists them.

  Raises:
    ValueError: naming the setting, file or row that is wrong, before anything
      is written.
    ScoringError: naming the reward and the row that are at fault.
    FaultError: if an update is not finite.
    CheckpointError: if a checkpoint cannot be read or written.
  """
  if callable(rewards):
    rewards = [rewards]
  found = (
    rewards_lib.parse(rewards)
    if isinstance(rewards, str)
    else rewards_lib.check_rewards(
      [rewards_lib.make_reward(own) for own in rewards]
    )
  )
  given = {
    split: str(own) if isinstance(own, pathlib.Path) else own
    for split, own in (
      ("train", rows),
      ("validation", validation),
      ("test", test),
    )
  }
  paths = {
    "data" if split == "train" else split: own
    for split, own in given.items()
    if isinstance(own, str)
  }
  launch = _make_launch(
    llm_config.get_config(llm_task.DATA),
    options
    | paths
    | {"model": str(model), "algorithm": algorithm, "num_seeds": num_seeds}
    | {"rewards": ",".join(own.text for own in found)}
    | ({} if num_updates is None else {"num_updates": num_updates}),
    workdir,
    resume,
    show_progress,
  )
  fields = rows_lib.Fields(
    launch.settings["question_field"], launch.settings["answer_field"]
  )
  given = {
    split: rows_lib.read(own) if isinstance(own, str) else list(own)
    for split, own in given.items()
    if own is not None
  }
  files = _identify(given, found)
  if resume:
    before = run_directory.read_config(launch.workdir)["files"]
    llm_task.check_files(before, files)
  launch = dataclasses.replace(
    launch, settings=launch.settings | {"files": files}
  )
  task = rows_lib.make_row_task(llm_task.DATA, given, found, fields)
  cpu_backend.keep_memory()
  with contextlib.ExitStack() as stack:
    run = llm.build(launch.settings, task)
    prepared = llm_training.prepare(stack, launch, run)
    return _gather(llm_training.execute(stack, launch, prepared), run)


def _identify(
  given: Mapping[str, Sequence[Mapping[str, Any]]],
  found: Sequence[rewards_lib.Reward],
) -> dict[str, str]:
  """Hashes of rows and of files of rewards, which must not change on resume."""
  hashes = {
    f"rows for {split}": hashlib.sha256(
      json.dumps(list(own), sort_keys=True, default=str).encode()
    ).hexdigest()
    for split, own in given.items()
  }
  return hashes | rewards_lib.identify(found)


def _take_own(given: Any, kind: Any, argument: str) -> tuple[Any, str]:
  """Tells an id from a problem of the caller's own, which is renamed.

  A problem called like a built-in one is another one: it has none of its tuned
  settings, and is not evaluated in its original.

  Returns:
    (the problem or None, its name).

  Raises:
    ValueError: if it is neither.
  """
  if isinstance(given, str):
    return None, given
  if not isinstance(given, kind):
    raise ValueError(
      f"{argument}: want an id or an object of that kind, got {given!r}"
    )
  own = policy_reading.rename_own(given)
  return own, own.name


def _make_launch(
  config: ml_collections.ConfigDict,
  options: Mapping[str, Any],
  workdir: str | pathlib.Path | None,
  resume: bool,
  show_progress: bool,
) -> run_lib.Launch:
  """Makes a launch from a config and the settings that differ from it.

  Raises:
    ValueError: naming a setting that is unknown or of another type.
  """
  if jax.distributed.is_initialized():
    raise ValueError(
      "this process is one of several; train with the scripts and --distributed"
    )
  known = [name for name in config if name != "tuned"]
  for name, value in options.items():
    if name not in known:
      raise ValueError(f"{name}: no such setting{checks.suggest(name, known)}")
    try:
      config[name] = value
    except TypeError:
      wanted = config.get_type(name).__name__
      raise ValueError(
        f"{name} must be of type {wanted}, got {value!r}"
      ) from None
  if config.policy_learning_rates:
    raise ValueError(
      "policy_learning_rates: call with one policy_learning_rate at a time"
    )
  if resume and workdir is None:
    raise ValueError("resume needs the workdir of the run to go on with")
  # As JSON keeps them, so that they compare with a file's.
  settings = json.loads(json.dumps(settings_lib.resolve(config)))
  if show_progress and options:
    for line in idle_settings.find_idle(settings, options):
      print(f"without effect: {line}")
  return run_lib.Launch(
    settings,
    None if workdir is None else pathlib.Path(workdir),
    resume=resume,
    show_progress=show_progress,
    tell=print if show_progress else lambda line: None,
  )


def _gather(done: run_lib.Outcome, run: policies.AnyRun) -> Trained[Any]:
  """Gathers the result of a run at one learning rate."""
  ((cell, summary),) = done.reported
  return Trained(
    cell.settings,
    summary,
    done.started.read_metrics(cell),
    [
      policies.make_policy(
        run,
        cell.settings,
        jax.tree.map(lambda leaf, place=place: leaf[place], done.result.params),
      )
      for place in range(cell.settings["num_seeds"])
    ],
  )
