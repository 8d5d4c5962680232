"""Batched text completion with a pretrained model.

Prompts are padded to one of a few bucket lengths, so only a few programs are
compiled.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lco_jax import networks, numerics, types
from lco_jax.language import generation


class Reading(NamedTuple):
  """A model's predictions for a text.

  Attributes:
    token_nll: float32[tokens − 1], −log π of each token after the first, in
      nats.
    top_tokens: int32[K], likeliest next tokens, best first.
    top_logits: float32[K], their logits.
  """

  token_nll: np.ndarray
  top_tokens: np.ndarray
  top_logits: np.ndarray


def bucket_length(length: int, shortest: int = 16) -> int:
  """Rounds a length up to a bucket: 16, 24, 32, 48, 64, and so on.

  At most a third of the slots stay empty.

  Args:
    length: tokens of the longest text.
    shortest: smallest bucket, a power of 2.
  """
  size = shortest
  while size < length:
    size += size // 2 if size & (size - 1) == 0 else size // 3
  return size


def pad_prompts(
  prompts: Sequence[Sequence[int]], length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Converts prompts to an array, padded on the left.

  Args:
    prompts: tokens of N prompts.
    length: P; None for the bucket of the longest prompt.

  Returns:
    (int32[N, P], number of padded slots int32[N]).

  Raises:
    ValueError: if a prompt is empty or longer than `length`.
  """
  longest = max(map(len, prompts))
  length = bucket_length(longest) if length is None else length
  if longest > length:
    raise ValueError(f"a prompt of {longest} tokens for {length} slots")
  if not min(map(len, prompts)):
    raise ValueError("a prompt has no tokens")
  array = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(array, prompts, strict=True):
    row[length - len(prompt) :] = prompt
  return array, np.array([length - len(p) for p in prompts], np.int32)


@dataclasses.dataclass(frozen=True)
class Completer:
  """Completes prompts with one model; compiles one program per bucket.

  Attributes:
    model: language model.
    end: tokens that end a completion.
    num_tokens: maximal length of a completion.
    batch_size: sequences per batch, at least all sequences of one prompt.
  """

  model: networks.LanguageModel
  end: tuple[int, ...]
  num_tokens: int
  batch_size: int

  def complete(
    self,
    params: types.Params,
    prompts: Sequence[Sequence[int]],
    keys: types.PRNGKey,
    sampling: generation.Sampling,
  ) -> list[list[list[int]]]:
    """Samples G completions of each prompt, end tokens included.

    Args:
      params: parameters of the model.
      prompts: tokens of N prompts.
      keys: PRNG keys [G, N].
      sampling: options of the sampling distribution.

    Returns:
      Tokens of the completions [G][N].
    """
    completions: list[list[list[int]]] = [[[] for _ in prompts] for _ in keys]
    for rows in _make_batches(prompts, self.batch_size // len(keys)):
      batch = pad_prompts([prompts[row] for row in rows])
      own = keys[:, np.array(rows)]
      done = self._generate(params, *batch, own.reshape(-1), sampling)
      shape = (*own.shape, self.num_tokens)
      tokens, mask = (
        np.reshape(leaf, shape) for leaf in (done.tokens, done.mask)
      )
      for sample, place in np.ndindex(own.shape):
        chosen = tokens[sample, place][mask[sample, place]]
        completions[sample][rows[place]] = chosen.tolist()
    return completions

  def read(
    self, params: types.Params, texts: Sequence[Sequence[int]], top_k: int
  ) -> list[Reading]:
    """Predicts the tokens of texts and their next tokens.

    Args:
      params: parameters of the model.
      texts: tokens of the texts, at least one each.
      top_k: K.
    """
    readings = {}
    for rows in _make_batches(texts, self.batch_size):
      tokens, padding = pad_prompts([texts[row] for row in rows])
      found = jax.tree.map(
        np.asarray, self._read(params, tokens, padding, top_k)
      )
      for index, row in enumerate(rows):
        own = Reading(*(leaf[index] for leaf in found))
        readings[row] = own._replace(
          token_nll=own.token_nll[int(padding[index]) :]
        )
    return [readings[row] for row in range(len(texts))]

  def log_probs(
    self,
    params: types.Params,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
  ) -> tuple[np.ndarray, np.ndarray]:
    """log π of answers' tokens; reads each prompt once for all its answers.

    Args:
      params: parameters of the model.
      prompts: tokens of N prompts.
      answers: tokens of answers [G][N], at most num_tokens each.

    Returns:
      (float32[G, N, num_tokens] in nats, 0 outside the mask;
      bool[G, N, num_tokens], mask of the tokens).
    """
    shape = (len(answers), len(prompts), self.num_tokens)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place in np.ndindex(shape[:2]):
      own = answers[place[0]][place[1]]
      tokens[place][: len(own)], mask[place][: len(own)] = own, True
    found = np.zeros(shape, np.float32)
    for rows in _make_batches(prompts, self.batch_size // len(answers)):
      batch = pad_prompts([prompts[row] for row in rows])
      found[:, rows] = self._log_probs(params, *batch, tokens[:, rows])
    return np.where(mask, found, np.float32(0)), mask

  @functools.partial(jax.jit, static_argnums=(0, 5))
  def _generate(self, params, prompt, padding, keys, sampling):
    return generation.generate(
      self.model,
      params,
      prompt,
      padding,
      keys,
      self.num_tokens,
      self.end,
      sampling,
      observe=lambda *_: (),
    )

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def _read(self, params, tokens, padding, top_k):
    hidden, _ = self.model.hidden(params, tokens, padding)

    def read_text(row):  # Holds the logits of a single text at a time.
      own, hidden = row
      logits = self.model.head(params, hidden)
      nll = -numerics.action_log_prob(logits[:-1], own[1:])
      values, likeliest = jax.lax.top_k(logits[-1], top_k)
      return Reading(nll, likeliest, values)

    return jax.lax.map(read_text, (jnp.asarray(tokens), hidden))

  @functools.partial(jax.jit, static_argnums=0)
  def _log_probs(self, params, prompt, padding, tokens):
    answers = tokens.reshape(-1, self.num_tokens)
    hidden = generation.completion_hidden(
      self.model, params, prompt, padding, answers
    )

    def read_answer(row):  # Holds the logits of a single answer at a time.
      own, hidden = row
      return numerics.action_log_prob(self.model.head(params, hidden), own)

    return jax.lax.map(read_answer, (answers, hidden)).reshape(tokens.shape)


def _make_batches(
  prompts: Sequence[Sequence[int]], batch_size: int
) -> list[list[int]]:
  """Groups prompts of similar length into batches of row indices.

  The last batch repeats its last row, so that all batches have the same size.
  """
  order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
  size = max(1, min(batch_size, len(order)))
  order += order[-1:] * (-len(order) % size)
  return [order[at : at + size] for at in range(0, len(order), size)]
