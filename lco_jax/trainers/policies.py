"""Trained policies: what a finished run has learned, ready to act.

A policy is read from a run directory or from a folder that `save` wrote. It
needs neither the optimizer nor the training loop.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lco_jax import environments, networks, tasks, types
from lco_jax import pretrained as pretrained_lib
from lco_jax.language import (
  generation,
  host_sampler,
  pairs,
  text_completion,
)
from lco_jax.runs import checkpointing, run_directory
from lco_jax.tasks import base
from lco_jax.trainers import (
  control,
  language,
  llm,
  llm_task,
  llm_training,
  midway,
)
from lco_jax.trainers import run as run_lib

# In names of environments and tasks that are objects of a script.
_OWN = "own:"
# Files of a saved policy.
_PARAMS, _CONFIG = "policy.safetensors", "config.json"


class _Saved:
  """A policy whose parameters and settings make up a folder."""

  params: types.Params
  settings: Mapping

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes policy.safetensors and config.json into a new folder.

    Args:
      folder: new or empty.

    Raises:
      ValueError: if it cannot be written to.
    """
    import safetensors.numpy  # Here: importing the library stays light.

    folder = pathlib.Path(folder)
    run_directory.check_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # config.json comes last: a folder without parameters is not a policy.
    safetensors.numpy.save_file(
      checkpointing.flatten(self.params), folder / _PARAMS
    )
    run_directory.write_json(folder / _CONFIG, dict(self.settings))


@dataclasses.dataclass(frozen=True)
class ControlPolicy(_Saved):
  """A trained policy of control, of one seed.

  Attributes:
    run: what trained it: environment, networks and options.
    params: parts of the parameters that act, moments of observations included.
    settings: of the run.
  """

  run: control.Run = dataclasses.field(repr=False)
  params: types.Params = dataclasses.field(repr=False)
  settings: Mapping = dataclasses.field(repr=False)

  @property
  def environment(
    self,
  ) -> environments.Environment | environments.HostEnvironment:
    """The environment of training."""
    return self.run.setup.environment

  def logits(self, observation: ArrayLike | Sequence[float]) -> Array:
    """Logits of the actions; the observation is normalised as in training.

    Args:
      observation: float[..., O], as the environment gives it.

    Returns:
      float[..., A], or [..., D, A] for actions of D dimensions.
    """
    observation = jnp.asarray(observation, jnp.float32)
    shape = self.environment.observation_shape
    before = observation.shape[: observation.ndim - len(shape)]
    if observation.shape != (*before, *shape):
      raise ValueError(
        f"observation must have shape [..., {', '.join(map(str, shape))}], got"
        f" {observation.shape}"
      )
    logits = self.run.policy(self.params, observation.reshape(-1, *shape))
    return logits.reshape(*before, *logits.shape[1:])

  def act(
    self,
    observation: ArrayLike | Sequence[float],
    key: types.PRNGKey | None = None,
  ) -> Array:
    """Chooses actions.

    Args:
      observation: float[..., O].
      key: to sample with; None for the likeliest action.

    Returns:
      int32[...], or [..., D] for actions of D dimensions.
    """
    logits = self.logits(observation)
    if key is None:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, logits).astype(jnp.int32)

  __call__ = act


@dataclasses.dataclass(frozen=True)
class LanguagePolicy(_Saved):
  """A trained policy of a small language task, of one seed.

  Attributes:
    run: what trained it: task and model.
    params: of the model.
    settings: of the run.
  """

  run: language.Run = dataclasses.field(repr=False)
  params: types.Params = dataclasses.field(repr=False)
  settings: Mapping = dataclasses.field(repr=False)

  @property
  def task(self) -> tasks.Task:
    """The task of training."""
    return self.run.task

  def logits(self, text: str) -> Array:
    """Logits of the token after each character of a text, float[L, V].

    Args:
      text: of the task's characters, L of them.

    Raises:
      ValueError: if it has other characters, or none.
    """
    tokens = self._encode(text)
    return self.run.model.apply(
      self.params, tokens[None], jnp.zeros(1, jnp.int32)
    )[0][0]

  def complete(
    self,
    prompts: Sequence[str],
    key: types.PRNGKey | None = None,
    temperature: float = 1.0,
  ) -> list[str]:
    """Completes prompts.

    Args:
      prompts: of the task's characters, at most its prompt_length of them.
      key: to sample with; None for the likeliest tokens.
      temperature: of the samples.

    Raises:
      ValueError: if one has other characters, or is too long.
    """
    if isinstance(prompts, str):
      raise ValueError("prompts: want a list of texts, got one text")
    if not prompts:
      return []
    width = self.task.prompt_length
    tokens = np.full((len(prompts), width), tasks.PADDING, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
      encoded = self._encode(prompt)
      if len(encoded) > width:
        raise ValueError(
          f"prompt {prompt!r} has {len(encoded)} characters, more than"
          f" {self.task.name}'s {width}"
        )
      row[width - len(encoded) :] = encoded
    padding = jnp.asarray((tokens == tasks.PADDING).sum(axis=1), jnp.int32)
    if key is None:
      key, temperature = jax.random.key(0), 0.0
    found = generation.generate(
      self.run.model,
      self.params,
      jnp.asarray(tokens),
      padding,
      jax.random.split(key, len(prompts)),
      self.task.completion_length,
      tasks.END,
      generation.Sampling(temperature=temperature),
    )
    return [self.task.text(own) for own in np.asarray(found.tokens)]

  __call__ = complete

  def _encode(self, text: str) -> Array:
    tokens = base.encode(self.task.characters, text)
    if not tokens:
      raise ValueError("the text is empty")
    return jnp.asarray(tokens, jnp.int32)


@dataclasses.dataclass(frozen=True)
class TextPolicy:
  """A trained pretrained model, of one seed.

  Attributes:
    pretrained: the model with the trained parameters, and its tokenizer.
    asking: turns questions into prompts as in training.
    settings: of the run.
  """

  pretrained: pretrained_lib.Pretrained = dataclasses.field(repr=False)
  asking: host_sampler.Asking = dataclasses.field(repr=False)
  settings: Mapping = dataclasses.field(repr=False)

  def complete(
    self,
    questions: Sequence[str],
    key: types.PRNGKey | None = None,
    temperature: float = 1.0,
  ) -> list[str]:
    """Answers questions, asked as in training.

    Args:
      questions: texts.
      key: to sample with; None for the likeliest tokens.
      temperature: of the samples.

    Raises:
      ValueError: if one leaves no room for an answer.
    """
    if isinstance(questions, str):
      raise ValueError("questions: want a list of texts, got one text")
    if not questions:
      return []
    asking, own = self.asking, self.pretrained
    completer = text_completion.Completer(
      networks.make_language_model(own.config_with()),
      asking.tokenizer.end,
      asking.completion_length,
      self.settings["eval_batch"],
      num_slots=asking.num_slots,
    )
    prompts = [asking.prompt({"question": question}) for question in questions]
    if key is None:
      key, temperature = jax.random.key(0), 0.0
    (found,) = completer.complete(
      jax.device_put(own.params),
      prompts,
      jax.random.split(key, len(prompts))[None],
      generation.Sampling(temperature=temperature),
    )
    return [asking.tokenizer.decode(tokens) for tokens in found]

  __call__ = complete

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes a new folder that transformers and `pretrained.load` can read.

    Args:
      folder: must not exist.

    Raises:
      FileExistsError: if it does.
    """
    pretrained_lib.export(
      self.pretrained, self.pretrained.params, pathlib.Path(folder)
    )


Policy = ControlPolicy | LanguagePolicy | TextPolicy
AnyRun = control.Run | language.Run | llm.Run


def is_saved(directory: pathlib.Path) -> bool:
  """Whether `save` of a control or small language policy wrote a folder."""
  return (directory / _PARAMS).exists()


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
  return make_policy(learned.run, learned.settings, own)


@dataclasses.dataclass(frozen=True)
class Learned:
  """All that a run has learned; from `read_learned`.

  Attributes:
    run: what trained it.
    settings: of the directory that was asked for.
    params: {part: parameters [learners, ...]}, of all learning rates.
    first: which learner is the directory's first seed.
  """

  run: AnyRun
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


def make_policy(
  run: AnyRun,
  settings: Mapping,
  params: Mapping[str, types.Params],
) -> Policy:
  """Makes the policy of one seed.

  Args:
    run: what trained it.
    settings: of the run.
    params: {part: parameters} of the seed.
  """
  if isinstance(run, control.Run):
    return ControlPolicy(run, control.acting_params(params), settings)
  if isinstance(run, llm.Run):
    learned = dataclasses.replace(run.pretrained, params=run.learned(params))
    return TextPolicy(learned, run.asking, settings)
  return LanguagePolicy(run, params["policy"], settings)


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


def _build(settings: Mapping, problem: Any) -> AnyRun:
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


def _build_known(settings: Mapping, problem: Any) -> AnyRun:
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
  if directory.name.startswith("rate_") and (whole / _CONFIG).exists():
    all_settings = run_directory.read_config(whole)
    for cell in run_lib.cells(whole, all_settings):
      if cell.workdir.name == directory.name:
        return whole, all_settings, cell.learners.start
  return directory, settings, 0


def _read_saved(folder: pathlib.Path, problem: Any) -> Policy:
  import safetensors
  import safetensors.numpy

  settings = run_directory.read_config(folder)
  run = _build(settings, problem)
  shapes = jax.eval_shape(run.training.init_params, jax.random.key(0))
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  blank = make_policy(run, settings, zeros)
  try:
    found = safetensors.numpy.load_file(folder / _PARAMS)
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(f"{folder / _PARAMS}: {error}") from error
  expected = checkpointing.describe(checkpointing.flatten(blank.params))
  if checkpointing.describe(found) != expected:
    raise ValueError(
      f"{folder / _PARAMS} does not hold the arrays of the policy that"
      f" {_CONFIG} describes"
    )
  params = jax.tree.unflatten(
    jax.tree.structure(blank.params), [found[name] for name in expected]
  )
  return dataclasses.replace(blank, params=params)
