"""Trained policies: what a finished run has learned, ready to act.

They need neither the optimizer nor the training loop. `policy_reading` reads
them from a run directory or from a folder that `save` wrote.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

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
  text_completion,
)
from lco_jax.runs import checkpointing, run_directory
from lco_jax.tasks import base
from lco_jax.trainers import (
  control,
  language,
  llm,
)

# Files of a saved policy.
PARAMS, CONFIG = "policy.safetensors", "config.json"


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
      checkpointing.flatten(self.params), folder / PARAMS
    )
    run_directory.write_json(folder / CONFIG, dict(self.settings))


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
