"""Completing texts with a pretrained model, many at a time.

Prompts of about the same length are padded to one of a few, so that only a few
programs are ever compiled.
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

Array = jax.Array


class Reading(NamedTuple):
  """What a model makes of a text.

  Attributes:
    token_nll: float32[tokens − 1], −log π of each but the first, in nats.
    top_tokens: int32[K], likeliest next tokens, best first.
    top_logits: float32[K], theirs.
  """

  token_nll: np.ndarray
  top_tokens: np.ndarray
  top_logits: np.ndarray


def bucket(length: int, shortest: int = 16) -> int:
  """The length that texts of up to so many tokens are padded to.

  One of 16, 24, 32, 48, 64, and so on: at most a third of it stays empty.

  Args:
    length: tokens of the longest.
    shortest: a power of 2, from which the lengths grow.
  """
  size = shortest
  while size < length:
    size += size // 2 if size & (size - 1) == 0 else size // 3
  return size


def padded(
  prompts: Sequence[Sequence[int]], length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts as arrays, padded on the left.

  Args:
    prompts: tokens of N prompts.
    length: P; None for the bucket of the longest.

  Returns:
    (int32[N, P], slots without a token int32[N]).

  Raises:
    ValueError: if one is empty, or longer than `length`.
  """
  longest = max(map(len, prompts))
  length = bucket(longest) if length is None else length
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
  """Completes prompts with one model; compiles a program for each bucket.

  Attributes:
    model: to sample from.
    end: tokens that end a completion.
    num_tokens: of a completion, at most.
    batch_size: sequences side by side, or those of one prompt.
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
    """Completions, the end included; a prompt is read once for all of its own.

    Args:
      params: of the model.
      prompts: tokens of N prompts.
      keys: PRNG keys [G, N].
      sampling: the distribution to sample from.

    Returns:
      Tokens of G times a completion of each prompt.
    """
    completions: list[list[list[int]]] = [[[] for _ in prompts] for _ in keys]
    for rows in _batches(prompts, self.batch_size // len(keys)):
      asked = padded([prompts[row] for row in rows])
      own = keys[:, np.array(rows)]
      done = self._generate(params, *asked, own.reshape(-1), sampling)
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
    """What the model makes of texts of at least one token.

    Args:
      params: of the model.
      texts: tokens.
      top_k: K.
    """
    readings = {}
    for rows in _batches(texts, self.batch_size):
      tokens, padding = padded([texts[row] for row in rows])
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
    """log π of answers' tokens; a prompt is read once for all of its own.

    Args:
      params: of the model.
      prompts: tokens of N prompts.
      answers: G times an answer to each prompt, of num_tokens tokens at most.

    Returns:
      (float32[G, N, num_tokens] in nats, 0 where there is no token;
      bool[G, N, num_tokens], where there is one).
    """
    shape = (len(answers), len(prompts), self.num_tokens)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place in np.ndindex(shape[:2]):
      own = answers[place[0]][place[1]]
      tokens[place][: len(own)], mask[place][: len(own)] = own, True
    found = np.zeros(shape, np.float32)
    for rows in _batches(prompts, self.batch_size // len(answers)):
      asked = padded([prompts[row] for row in rows])
      found[:, rows] = self._log_probs(params, *asked, tokens[:, rows])
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

    def one(row):  # Logits of one text at a time.
      own, hidden = row
      logits = self.model.head(params, hidden)
      nll = -numerics.action_log_prob(logits[:-1], own[1:])
      values, likeliest = jax.lax.top_k(logits[-1], top_k)
      return Reading(nll, likeliest, values)

    return jax.lax.map(one, (jnp.asarray(tokens), hidden))

  @functools.partial(jax.jit, static_argnums=0)
  def _log_probs(self, params, prompt, padding, tokens):
    answers = tokens.reshape(-1, self.num_tokens)
    hidden = generation.completion_hidden(
      self.model, params, prompt, padding, answers
    )

    def one(row):  # Logits of one answer at a time.
      own, hidden = row
      return numerics.action_log_prob(self.model.head(params, hidden), own)

    return jax.lax.map(one, (answers, hidden)).reshape(tokens.shape)


def _batches(
  prompts: Sequence[Sequence[int]], batch_size: int
) -> list[list[int]]:
  """Rows of prompts, those of about one length together.

  The last batch is filled up with one of it, so that all are of one size.
  """
  order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
  size = max(1, min(batch_size, len(order)))
  order += order[-1:] * (-len(order) % size)
  return [order[at : at + size] for at in range(0, len(order), size)]
