"""Collecting completions of texts, which the host asks for and scores.

Devices generate; the host draws problems, decodes and has them scored. A
problem depends on the seed, the stream and the update in which it was drawn,
which the learner's state carries (see `prompt_repeats`), so a run that is
resumed meets the same ones.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import checks, networks, numerics, pretrained, tasks, types
from lco_jax.language import (
  data,
  generation,
  prompt_repeats,
  samplers,
  scoring,
  text_completion,
)
from lco_jax.training import placement as placement_lib
from lco_jax.training import program

Array = jax.Array

# Times that a problem is drawn again because it leaves no room for an answer.
_REDRAWS = 100
# Completions are cut off behind the longest: at 8, 12, 16, 24, ... tokens.
_SHORTEST = 8


@dataclasses.dataclass(frozen=True)
class Asking:
  """How a model is asked.

  Attributes:
    task: what is asked.
    tokenizer: the model's.
    instruction: text after every question; may be empty.
    chat: whether the question is a user's message of a chat.
    completion_length: C, tokens of an answer at most.
    context_length: tokens of a prompt and its answer, at most.
    sampling: the distribution that answers are sampled from.
    exact: whether a reward is 1 for a solution and 0 otherwise, rather than
      what the task's verifier gives.
  """

  task: tasks.TextTask
  tokenizer: pretrained.Tokenizer
  instruction: str
  chat: bool
  completion_length: int
  context_length: int
  sampling: generation.Sampling
  exact: bool = True

  def prompt(self, question: str) -> list[int]:
    """Tokens of a question, up to where the answer begins.

    Raises:
      ValueError: if there is no room for an answer after it.
    """
    text = question + self.instruction
    if self.chat:
      text = self.tokenizer.chat([{"role": "user", "content": text}])
    tokens = self.tokenizer.encode(text, begins=not self.chat)
    if len(tokens) + self.completion_length > self.context_length:
      raise ValueError(
        f"completion_length {self.completion_length} after a prompt of"
        f" {len(tokens)} tokens is more than the model's {self.context_length}:"
        f" {question[:40]!r}"
      )
    return tokens

  def reward(self, value: np.ndarray) -> np.ndarray:
    """What scores in [0, 1] earn."""
    return np.where(value >= 1, 1.0, 0.0) if self.exact else value

  def draw(
    self, seed: int, stream: int, update: int
  ) -> tuple[dict[str, Any], list[int]]:
    """The problem that a stream of a seed draws in an update, and its prompt.

    One that leaves no room for an answer is drawn again: where such are rare, a
    run should not end with the first.

    Raises:
      ValueError: if all that are drawn are so.
    """
    for again in range(1 + _REDRAWS):
      # The first draw is as it was before there were others.
      more = [again] if again else []
      place = [int(seed), int(stream), int(update)]
      words = np.random.SeedSequence([*place, *more])
      number = int(words.generate_state(1, np.uint64)[0] >> 1)
      problem = self.task.problem("train", number)
      try:
        return problem, self.prompt(problem["question"])
      except ValueError as error:
        too_long = error
    raise too_long


@dataclasses.dataclass(frozen=True)
class Example:
  """A completion, to be looked at.

  Attributes:
    question: the problem's.
    completion: text.
    reward: what it earned.
  """

  question: str
  completion: str
  reward: float


def make_sampler(
  completion_length: int, max_visits: int = 1
) -> samplers.Sampler:
  """Builds the sampler of a training whose samples a TextCollector collects.

  Args:
    completion_length: C, tokens of a completion at most.
    max_visits: updates that a prompt is sampled in at most, see
      `prompt_repeats`.

  Raises:
    ValueError: if a number is out of range.
  """
  checks.check_number("max_visits", max_visits, at_least=1)
  return samplers.Sampler(
    completion_length,
    init_actor=prompt_repeats.init_streams,
    follow=lambda drawn, samples, completed: prompt_repeats.advance_streams(
      drawn, samples.correct, completed, max_visits
    ),
  )


class TextCollector:
  """Draws problems, has them completed, and scores the completions.

  D is the number of the process' devices, S and N are the seeds and streams on
  each, G the samples of a prompt.

  Attributes:
    rollout: the last one, Samples [devices, S, G, N, ...].
  """

  def __init__(
    self,
    asking: Asking,
    model: networks.LanguageModel,
    task: program.Training,
    placement: placement_lib.Placement,
    seeds: Sequence[int],
    scorer: scoring.Scorer,
    completes: Callable[[Mapping[str, types.Params]], types.Params],
    first_update: int = 0,
    show: Callable[[int, list[Example]], None] = lambda update, examples: None,
  ):
    """Prepares to collect.

    Args:
      asking: how the model is asked.
      model: that is asked.
      task: what is trained; its streams are prompts, its steps samples.
      placement: of seeds and streams on devices.
      seeds: of the run.
      scorer: of completions.
      completes: parts of the parameters → those of the model that completes.
      first_update: completed updates.
      show: takes (update, examples) of each update.
    """
    self._asking, self._model, self._task = asking, model, task
    self._placement, self._scorer, self._show = placement, scorer, show
    self._update, self._completes = first_update, completes
    self._num_samples = task.num_steps * task.samples_per_step
    self._seeds, self._streams = (
      placement.deal_streams(index)
      for index in np.meshgrid(
        np.asarray(seeds), np.arange(task.num_streams), indexing="ij"
      )
    )
    self._programs, self._cuts = {}, {}
    self.rollout = None

  def collect(self, state: types.LearnerState) -> data.Samples:
    """Samples and scores G completions of every prompt.

    Args:
      state: learner state [devices, seeds, ...], actor as of `prompt_repeats`.

    Returns:
      Samples [devices, S, G, N, ...], on the devices.
    """
    where, asking = self._placement, self._asking
    # Every process draws all, to pad to the longest.
    drawn = where.deal_streams(where.collect_streams(state.actor))
    first_visit = np.broadcast_to(
      (drawn == self._update)[:, :, None],
      (*drawn.shape[:2], self._num_samples, drawn.shape[2]),
    )
    problems, prompts = zip(
      *(
        asking.draw(*place)
        for place in zip(
          self._seeds.flat, self._streams.flat, drawn.flat, strict=True
        )
      ),
      strict=True,
    )
    prompt, padding = text_completion.pad_prompts(prompts)
    shape, own = self._seeds.shape, where.local_devices
    asked = where.put_local(
      (
        prompt.reshape(*shape, -1)[own],
        padding.reshape(shape)[own],
      )
    )
    length = prompt.shape[1]
    if length not in self._programs:
      self._programs[length] = where.compile(
        self._generate_all, state, *asked, long_reductions=True
      )
    samples, longest = self._programs[length](state, *asked)
    samples = self._cut(samples, int(where.common(longest).max()))
    tokens, mask = where.local((samples.action, samples.mask))
    entries = np.empty(len(problems), object)
    entries[:] = problems
    scores = self._scored(entries.reshape(shape)[own], tokens, mask)
    value, failed = scores[..., 0].astype(np.float32), scores[..., 1] > 0
    correct = value >= 1
    reward = np.float32(asking.reward(value))
    self.rollout = dataclasses.replace(
      samples,
      reward=where.put_local(reward),
      correct=where.put_local(correct),
      failed=where.put_local(failed),
      first_visit=where.put_local(first_visit[own]),
    )
    self._update += 1
    return self.rollout

  def _generate_all(self, state, prompt, padding):
    """Every seed's completions, and the tokens of each seed's longest."""
    each = placement_lib.each_seed(self._generate)
    samples = each(state, prompt, padding)
    longest = jnp.max(jnp.sum(samples.mask, axis=-1), axis=(1, 2))
    longest = jax.lax.pmax(longest, numerics.DEVICE_AXIS)
    return samples, self._placement.all_seeds(longest, axis=0)

  def _cut(self, samples: data.Samples, longest: int) -> data.Samples:
    """Leaves out slots of tokens that no completion came to."""
    length = text_completion.bucket_length(longest, _SHORTEST)
    if length >= self._asking.completion_length:
      return samples
    lengths = samples.prompt.shape[-1], length
    if lengths not in self._cuts:
      self._cuts[lengths] = self._placement.compile(
        functools.partial(_first_tokens, length), samples, once=True
      )
    return self._cuts[lengths](samples)

  def _generate(self, state, prompt, padding):
    """One seed's completions: Samples [G, N], without rewards."""
    asking, task = self._asking, self._task
    keys = jax.vmap(
      lambda key: jax.random.split(key, self._num_samples), out_axes=1
    )(program.collection_keys(task, self._placement.num_shards, state))

    done = samplers.complete_prompts(
      self._model,
      self._completes(state.params),
      prompt,
      padding,
      keys,
      asking.completion_length,
      asking.tokenizer.end,
      asking.sampling,
    )
    hidden, log_prob = done.observed
    shape = done.truncated.shape
    blank = jnp.zeros(shape, bool)
    return data.Samples(
      prompt=jnp.broadcast_to(prompt[None], (*shape, prompt.shape[-1])),
      padding=jnp.broadcast_to(padding[None], shape),
      action=done.tokens,
      mask=done.mask,
      hidden=hidden,
      log_prob=jnp.where(done.mask, log_prob, 0.0),
      reward=jnp.zeros(shape),
      correct=blank,
      truncated=done.truncated,
      failed=blank,
      first_visit=blank,
    )

  def _scored(
    self, entries: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """(value, failed) of each completion: float[D, S, G, N, 2]."""
    waiting, texts = [], []
    for place in np.ndindex(tokens.shape[:-1]):
      device, seed, _, stream = place
      text = self._asking.tokenizer.decode(tokens[place][mask[place]].tolist())
      entry = entries[device, seed, stream]
      waiting.append(self._scorer.submit(entry, text))
      texts.append((entry["question"], text))
    scores = self._scorer.collect(waiting)
    # Samples of the first prompt: their first axis but one is the sample.
    number = len(texts) // tokens.shape[0] // tokens.shape[1]
    per_sample = number // tokens.shape[2]
    self._show(
      self._update + 1,
      [
        Example(*texts[index], float(self._asking.reward(scores[index].value)))
        for index in range(0, number, per_sample)
      ],
    )
    return np.array(scores, np.float64).reshape(*tokens.shape[:-1], 2)

  def close(self) -> None:
    """Ends nothing: whoever made the scorer ends it."""


def _first_tokens(length: int, samples: data.Samples) -> data.Samples:
  """The first tokens of completions [S, G, N, C]."""
  of_tokens = ("action", "mask", "hidden", "log_prob")
  return dataclasses.replace(
    samples,
    **{name: getattr(samples, name)[:, :, :, :length] for name in of_tokens},
  )
