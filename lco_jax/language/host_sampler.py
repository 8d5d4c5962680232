"""Collecting completions of texts, which the host asks for and scores.

Devices generate; the host draws problems, decodes and has them scored. A
problem depends on the seed, the stream and the update in which it was drawn,
which the learner's state carries (see `prompt_repeats`), so a run that is
resumed meets the same ones.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from lco_jax import checks, networks, pretrained, tasks, types
from lco_jax.language import (
  data,
  generation,
  group_generation,
  prompt_repeats,
  samplers,
  scoring,
  text_completion,
)
from lco_jax.networks import partitioning
from lco_jax.training import phases, placement, program, transfers

# Replacements of a problem that leaves no room for an answer.
_REDRAWS = 100
# Completions are cut off behind the longest: at 8, 12, 16, 24, ... tokens.
_SHORTEST = 8
# Share of the slots up to which packed tokens are worth their gathers.
_MOST_PACKED = 0.9


@dataclasses.dataclass(frozen=True)
class Asking:
  """Turns a task's problems into prompts, and scores into rewards.

  Attributes:
    task: gives problems, and what scores completions.
    tokenizer: the model's.
    instruction: text after every question; may be empty.
    chat: whether the question is a user's message of a chat.
    completion_length: C, tokens of an answer at most.
    context_length: tokens of a prompt and its answer, at most.
    sampling: the distribution that answers are sampled from.
    reward: scores float[S, G, N, K] → rewards float[S, G, N].
    num_slots: answers of a seed that run at a time on a device, see
      `refilling`; 0 for all.
  """

  task: tasks.TextTask | tasks.RowTask
  tokenizer: pretrained.Tokenizer
  instruction: str
  chat: bool
  completion_length: int
  context_length: int
  sampling: generation.Sampling
  reward: Callable[[np.ndarray], np.ndarray] = operator.itemgetter((..., 0))
  num_slots: int = 0

  def prompt(self, problem: Mapping[str, Any]) -> list[int]:
    """Tokens of a problem, up to where the answer begins.

    Args:
      problem: has a question, or the messages of a chat whose last one is it.

    Raises:
      ValueError: if there is no room for an answer after it.
    """
    text = problem["question"] + self.instruction
    if self.chat:
      before = problem.get("messages", [{"role": "user"}])
      text = self.tokenizer.chat([*before[:-1], before[-1] | {"content": text}])
    tokens = self.tokenizer.encode(text, begins=not self.chat)
    if len(tokens) + self.completion_length > self.context_length:
      raise ValueError(
        f"completion_length {self.completion_length} after a prompt of"
        f" {len(tokens)} tokens is more than the model's {self.context_length}:"
        f" {problem['question'][:40]!r}"
      )
    return tokens

  def draw(
    self, seed: int, stream: int, update: int
  ) -> tuple[dict[str, Any], list[int]]:
    """Draws the problem of a stream of a seed in an update, and its prompt.

    A problem that leaves no room for an answer is replaced: a rare long problem
    should not end a run.

    Raises:
      ValueError: if no replacement fits.
    """
    for again in range(1 + _REDRAWS):
      more = [again] if again else []
      place = [int(seed), int(stream), int(update)]
      words = np.random.SeedSequence([*place, *more])
      number = int(words.generate_state(1, np.uint64)[0] >> 1)
      problem = self.task.problem("train", number)
      try:
        return problem, self.prompt(problem)
      except ValueError as error:
        too_long = error
    raise too_long


@dataclasses.dataclass(frozen=True)
class Example:
  """A completion to show.

  Attributes:
    question: the problem's.
    completion: text.
    reward: its reward.
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
  """Draws problems, completes them on devices, and scores the completions.

  S and N are the seeds and streams of this process, G the samples of a prompt.
  """

  def __init__(
    self,
    asking: Asking,
    model: networks.LanguageModel,
    training: program.Training,
    mesh: Mesh,
    seeds: Sequence[int],
    scorer: scoring.Scorer,
    completes: Callable[[Mapping[str, types.Params]], types.Params],
    first_update: int = 0,
    show: Callable[[int, list[Example]], None] = lambda update, examples: None,
    gather_dtype: str | None = None,
  ):
    """Prepares to collect.

    Args:
      asking: how the model is asked.
      model: that is asked.
      training: what is trained; its streams are prompts, its steps samples.
      mesh: that seeds and streams are divided over.
      seeds: of the run.
      scorer: of completions.
      completes: parts of the parameters → those of the model that completes.
      first_update: completed updates.
      show: takes (update, examples) of each update.
      gather_dtype: as of `GroupGeneration`.
    """
    self._asking, self._mesh, self._update = asking, mesh, first_update
    self._scorer, self._show = scorer, show
    self._generation = group_generation.GroupGeneration(
      model,
      training,
      completes,
      asking.completion_length,
      asking.tokenizer.end,
      asking.sampling,
      gather_dtype,
      asking.num_slots,
    )
    self._seeds, self._streams = np.meshgrid(
      np.asarray(seeds), np.arange(training.num_streams), indexing="ij"
    )
    # Which of all streams are this process' own: int32[S, N].
    numbers = np.arange(self._seeds.size, dtype=np.int32)
    self._own = transfers.read_local(
      transfers.to_devices(
        numbers.reshape(self._seeds.shape), mesh, placement.STREAMS
      )
    )
    self._own_rows = self._count_own_rows(training)
    self._programs, self._counters, self._cuts = {}, {}, {}
    self.phases = phases.Phases()

  def collect(self, state: types.LearnerState) -> data.Samples:
    """Samples and scores G completions of every prompt.

    Args:
      state: the learner state, on the mesh; its actor is that of
        `prompt_repeats`.

    Returns:
      Samples [seeds, G, N, ...] of all processes, on the mesh.
    """
    drawn = transfers.to_host(state.actor)
    problems, asked = self._ask(drawn)
    samples = self._complete(state, asked)
    if self._update == 0:
      self._warn_if_none_ends(transfers.read_local(samples.truncated))
    with self.phases.measure(phases.SCORING):
      values, failed = self._score(
        problems, *transfers.read_local((samples.action, samples.mask))
      )
    first_visit = np.broadcast_to(
      (drawn == self._update)[:, None],
      (drawn.shape[0], self._generation.num_samples, drawn.shape[1]),
    )
    parts = {
      reward.name: np.float32(values[..., index])
      for index, reward in enumerate(_list_rewards(self._asking.task))
    }
    reward, correct, failed, parts = transfers.put_local(
      (
        np.float32(self._asking.reward(values)),
        values[..., 0] >= 1,
        failed,
        parts,
      ),
      self._mesh,
      placement.ROLLOUTS,
    )
    self._update += 1
    return dataclasses.replace(
      samples,
      reward=reward,
      correct=correct,
      failed=failed,
      rewards=parts or None,
      first_visit=transfers.to_devices(
        first_visit, self._mesh, placement.ROLLOUTS
      ),
    )

  def _warn_if_none_ends(self, truncated: np.ndarray) -> None:
    """Logs it if all of the first update's completions were cut off."""
    if truncated.all():
      tokenizer = self._asking.tokenizer
      logging.warning(
        "no completion of the first update ended within %d tokens: set a longer"
        " completion_length or, if the model ends its answers with another"
        " token than %s, end_tokens",
        self._asking.completion_length,
        " or ".join(map(tokenizer.token, tokenizer.end)),
      )

  def _ask(self, drawn: np.ndarray) -> tuple[np.ndarray, Any]:
    """Draws all streams' problems: every process pads to the longest of all.

    Args:
      drawn: int32[seeds, N] of all processes, the updates to draw them in.

    Returns:
      (problems [S, N], (prompts [seeds, N, P], padding [seeds, N]) on the
      mesh).
    """
    drawn_problems, prompts = zip(
      *(
        self._asking.draw(*place)
        for place in zip(
          self._seeds.flat, self._streams.flat, drawn.flat, strict=True
        )
      ),
      strict=True,
    )
    prompt, padding = text_completion.pad_prompts(prompts)
    asked = prompt.reshape(*drawn.shape, -1), padding.reshape(drawn.shape)
    problems = np.empty(len(drawn_problems), object)
    problems[:] = drawn_problems
    asked = transfers.to_devices(asked, self._mesh, placement.STREAMS)
    return problems[self._own], asked

  def _complete(self, state: types.LearnerState, asked: Any):
    """Completes all prompts, without slots behind the longest completion."""
    length = asked[0].shape[-1]
    if length not in self._programs:
      traced = self._generation.trace(self._mesh, state, *asked)
      self._counters[length] = phases.make_counter(
        traced.stage.jaxpr.jaxpr, self._mesh
      )
      self._programs[length] = traced.compile()
    with self.phases.measure(phases.GENERATION):
      samples, lengths = self._programs[length](state, *asked)
      lengths = transfers.to_host(lengths)
    longest = int(lengths.longest.max())
    num_steps = int(lengths.num_steps.max())
    self.phases.count(phases.GENERATION, self._counters[length](num_steps))
    samples = self._cut(samples, longest)
    return dataclasses.replace(
      samples,
      packed_tokens=self._choose_packed(samples, int(lengths.packed.max())),
    )

  def _choose_packed(self, samples: data.Samples, needed: int) -> int | None:
    """Chooses the places of a step's packed tokens, as of TokenBatch.

    Args:
      samples: cut off behind the longest.
      needed: places, on a device; −1 if it reads completions whole.

    Returns:
      The places; None where most slots of the completions hold tokens.
    """
    if needed < 0:
      return None
    slots = self._own_rows * (samples.mask.shape[-1] - 1)
    shards = dict(self._mesh.shape).get(partitioning.FSDP_AXIS, 1)
    size = shards * _round_up(needed // shards)
    return size if size <= _MOST_PACKED * slots else None

  def _count_own_rows(self, training: program.Training) -> int:
    """Counts the completions of a device's step; 0 if it reads them whole."""
    if training.count_packed is None:
      return 0
    own = training.num_streams // self._mesh.shape[placement.DATA_AXIS]
    # Two tokens each: one behind the first.
    mask = np.ones((self._generation.num_samples, own, 2), bool)
    return int(training.count_packed(mask))

  def _cut(self, samples: data.Samples, longest: int) -> data.Samples:
    """Drops the slots behind the longest completion."""
    length = text_completion.bucket_length(longest, _SHORTEST)
    if length >= self._asking.completion_length:
      return samples
    lengths = samples.prompt.shape[-1], length
    if lengths not in self._cuts:
      self._cuts[lengths] = placement.compile(
        functools.partial(_first_tokens, length),
        self._mesh,
        (placement.ROLLOUTS,),
        placement.ROLLOUTS,
        samples,
        once=True,
      )
    return self._cuts[lengths](samples)

  def _score(
    self, problems: np.ndarray, tokens: np.ndarray, mask: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores this process' completions [S, G, N, C], and shows the first.

    Args:
      problems: object[S, N].
      tokens: int32[S, G, N, C].
      mask: bool[S, G, N, C].

    Returns:
      (values float64[S, G, N, K], failed bool[S, G, N]).
    """
    waiting, texts = [], []
    for place in np.ndindex(tokens.shape[:-1]):
      seed, _, stream = place
      text = self._asking.tokenizer.decode(tokens[place][mask[place]].tolist())
      problem = problems[seed, stream]
      waiting.append(self._scorer.submit(problem, text))
      texts.append((problem["question"], text))
    scores = self._scorer.collect(waiting)
    shape = tokens.shape[:-1]
    values = np.array([score.values for score in scores], np.float64)
    values = values.reshape(*shape, -1)
    _, num_samples, num_prompts = shape
    shown = self._asking.reward(values)[0, :, 0]
    self._show(
      self._update + 1,
      [
        Example(*texts[sample * num_prompts], float(shown[sample]))
        for sample in range(num_samples)
      ],
    )
    return values, np.array([score.failed for score in scores]).reshape(shape)


def _round_up(count: int) -> int:
  """Rounds up to one of four sizes between powers of 2: fewer are compiled."""
  count = max(count, _SHORTEST)
  step = 2 ** ((count - 1).bit_length() - 3)
  return -(-count // step) * step


def _list_rewards(task: tasks.TextTask | tasks.RowTask) -> Sequence:
  """Lists the rewards that have metrics of their own."""
  return task.grader.rewards if isinstance(task, tasks.RowTask) else ()


def _first_tokens(length: int, samples: data.Samples) -> data.Samples:
  """The first tokens of completions [S, G, N, C]."""
  of_tokens = ("action", "mask", "hidden", "log_prob")
  return dataclasses.replace(
    samples,
    **{name: getattr(samples, name)[:, :, :, :length] for name in of_tokens},
  )
