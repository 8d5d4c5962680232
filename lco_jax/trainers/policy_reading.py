"""Reading trained policies: from runs, and from folders that `save` wrote."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lco_jax import environments, tasks, types
from lco_jax.language import pairs
from lco_jax.runs import checkpointing, run_directory
from lco_jax.trainers import (
  control,
  language,
  llm,
  llm_task,
  llm_training,
  midway,
  policies,
)
from lco_jax.trainers import run as run_lib

# In names of environments and tasks that are objects of a script.
_OWN = "own:"


def is_saved(directory: pathlib.Path) -> bool:
  """Whether `save` of a control or small language policy wrote a folder."""
  return (directory / policies.PARAMS).exists()


def load_policy(
  directory: str | pathlib.Path,
  seed: int | None = None,
  *,
  best: bool = False,
  environment: environments.Environment
  | environments.HostEnvironment
  | None = None,
  task: tasks.Task | tasks.RowTask | None = None,
) -> Any:
  """Reads a trained policy.

  Args:
    directory: of a run of control, of a small language task or of a pretrained
      model; one learning rate of such a run (RUN/rate_...); or a folder that
      `save` of one of the first two wrote.
    seed: which of the run's seeds; None for the first.
    best: whether to take the policy of the best evaluation in the course of a
      run (eval_every) in place of the newest.
    environment: of the run, if it was trained in an object that has no id.
    task: of the run, likewise.

  Returns:
    The policy after the last update that was saved: a ControlPolicy,
    LanguagePolicy or TextPolicy, as the run has it.

  Raises:
    ValueError: if it holds no such policy.
    CheckpointError: if its checkpoint cannot be read.
  """
  directory = pathlib.Path(directory)
  problem = environment or task
  if problem is not None:
    problem = rename_own(problem)
  if is_saved(directory):
    if seed is not None or best:
      raise ValueError(f"{directory} holds one policy; leave seed and best out")
    return _read_saved(directory, problem)
  learned = read_learned(directory, problem, best)
  seeds = run_lib.seeds_of(learned.settings)
  seed = seeds[0] if seed is None else seed
  if seed not in seeds:
    raise ValueError(
      f"seed {seed}: the run in {directory} has seeds {seeds[0]} to {seeds[-1]}"
    )
  place = learned.first + seeds.index(seed)
  own = jax.tree.map(lambda leaf: leaf[place], learned.params)
  return policies.make_policy(learned.run, learned.settings, own)


@dataclasses.dataclass(frozen=True)
class Learned:
  """All that a run has learned; from `read_learned`.

  Attributes:
    run: what trained it.
    settings: of the directory that was asked for.
    params: {part: parameters [learners, ...]}, of all learning rates.
    first: which learner is the directory's first seed.
  """

  run: policies.AnyRun
  settings: Mapping
  params: dict[str, types.Params]
  first: int


def read_learned(
  directory: pathlib.Path, problem: Any = None, best: bool = False
) -> Learned:
  """Reads the parameters of a run, or of a learning rate of one.

  Args:
    directory: of the run, or RUN/rate_...
    problem: environment or task of the run, if it has no id.
    best: whether to read the best evaluation's.

  Raises:
    ValueError: if it holds no run that can be read.
    CheckpointError: if its checkpoint cannot be read.
  """
  settings = run_directory.read_config(directory)
  whole, all_settings, first = _find_learners(directory, settings)
  run = _build(all_settings, problem)
  given = {}
  if isinstance(run, llm.Run):  # Verifiers may have other shapes.
    given = llm_training.copy_to_seeds(all_settings, run.given)
  if best:
    shapes = run_lib.blank_state(all_settings, run.training, given).params
    _, params, _ = midway.best_checkpoints(whole, all_settings).restore(shapes)
  else:
    _, params = run_lib.restore_params(whole, all_settings, run.training, given)
  return Learned(run, settings, params, first)


def rename_own(problem: Any) -> Any:
  """Marks an environment or task of the user's own by its name.

  Raises:
    ValueError: if it is neither.
  """
  if not dataclasses.is_dataclass(problem) or not hasattr(problem, "name"):
    raise ValueError(
      "environment, task: want an object, as it was given to the training; got"
      f" {problem!r}"
    )
  name = problem.name.removeprefix(_OWN)
  return dataclasses.replace(problem, name=_OWN + name)


def _build(settings: Mapping, problem: Any) -> policies.AnyRun:
  """Builds a run; errors say how to bring what it needs."""
  name = settings.get("environment") or settings.get("task", "")
  kind = "environment" if "environment" in settings else "task"
  if problem is None and name.startswith(_OWN):
    raise ValueError(
      f"{kind} {name}: it was an object of a script; give it as {kind}="
    )
  try:
    return _build_known(settings, problem)
  except ValueError as error:
    if "plugins" not in settings:
      raise
    files = ", ".join(settings["plugins"])
    raise ValueError(
      f"{error}; the run uses the plug-ins {files}: import them before"
    ) from error


def _build_known(settings: Mapping, problem: Any) -> policies.AnyRun:
  if "model" in settings:
    if settings["algorithm"] in pairs.VERIFIERS:
      raise ValueError(
        f"it is a run of {settings['algorithm']}, a verifier and no policy"
      )
    return llm.build(settings, problem or llm_task.NO_TASK)
  if "environment" in settings:
    return control.build(settings, problem)
  if "task" in settings:
    return language.build(settings, problem)
  raise ValueError(
    "the directory holds no run of control or of a language task; its"
    " config.json has neither environment nor task"
  )


def _find_learners(
  directory: pathlib.Path, settings: Mapping
) -> tuple[pathlib.Path, Mapping, int]:
  """Finds the run whose checkpoints hold a directory's learners.

  Returns:
    (its directory, its settings, place of the first learner).

  Raises:
    ValueError: if the directory holds several learning rates.
  """
  if settings["policy_learning_rates"]:
    first = next(iter(run_lib.cells(directory, settings)))
    raise ValueError(
      f"{directory} has several learning rates; choose one, such as"
      f" {first.workdir}"
    )
  whole = directory.parent
  if directory.name.startswith("rate_") and (whole / policies.CONFIG).exists():
    all_settings = run_directory.read_config(whole)
    for cell in run_lib.cells(whole, all_settings):
      if cell.workdir.name == directory.name:
        return whole, all_settings, cell.learners.start
  return directory, settings, 0


def _read_saved(folder: pathlib.Path, problem: Any) -> policies.Policy:
  import safetensors
  import safetensors.numpy

  settings = run_directory.read_config(folder)
  run = _build(settings, problem)
  shapes = jax.eval_shape(run.training.init_params, jax.random.key(0))
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  blank = policies.make_policy(run, settings, zeros)
  try:
    found = safetensors.numpy.load_file(folder / policies.PARAMS)
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(f"{folder / policies.PARAMS}: {error}") from error
  expected = checkpointing.describe(checkpointing.flatten(blank.params))
  if checkpointing.describe(found) != expected:
    raise ValueError(
      f"{folder / policies.PARAMS} does not hold the arrays of the policy that"
      f" {policies.CONFIG} describes"
    )
  params = jax.tree.unflatten(
    jax.tree.structure(blank.params), [found[name] for name in expected]
  )
  return dataclasses.replace(blank, params=params)
