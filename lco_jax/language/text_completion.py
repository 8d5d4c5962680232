"""Batched text completion with a pretrained model.

Prompts are padded to one of a few bucket lengths, so only a few programs are
compiled. A mesh may divide the model; then all processes of a job make the same
calls, and get the same results.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lco_jax import networks, numerics, types
from lco_jax.language import generation
from lco_jax.networks import partitioning
from lco_jax.training import placement, transfers
from lco_jax.training import rows as rows_lib


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
    mesh: that divides the model; None for a model on one device.
    gather_dtype: as of `GroupGeneration`.
    num_slots: sequences of a batch that run at a time; 0 for all.
  """

  model: networks.LanguageModel
  end: tuple[int, ...]
  num_tokens: int
  batch_size: int
  mesh: Mesh | None = None
  gather_dtype: str | None = None
  num_slots: int = 0

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
    # On the host: what is on one device cannot meet what is on several.
    words = np.asarray(jax.random.key_data(keys))
    for rows in self._make_batches(prompts, self.batch_size // len(keys)):
      batch = pad_prompts([prompts[row] for row in rows])
      own = words[:, np.array(rows)]
      with self._on_mesh():
        done = self._generate(params, *batch, own, sampling)
      tokens, mask = map(np.asarray, done)
      for sample, place in np.ndindex(own.shape[:2]):
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
    for rows in self._make_batches(texts, self.batch_size):
      tokens, padding = pad_prompts([texts[row] for row in rows])
      with self._on_mesh():
        found = self._read(params, tokens, padding, top_k)
      found = jax.tree.map(np.asarray, found)
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
    for rows in self._make_batches(prompts, self.batch_size // len(answers)):
      batch = pad_prompts([prompts[row] for row in rows])
      with self._on_mesh():
        own = self._log_probs(params, *batch, tokens[:, rows])
      found[:, rows] = own
    return np.where(mask, found, np.float32(0)), mask

  def place(self, params: types.Params) -> types.Params:
    """Puts the parameters of the model on the device, or on the mesh.

    Args:
      params: on the host, in a file, or on devices already.
    """
    if self.mesh is None:
      return jax.device_put(params)
    if placement.is_divided(params):
      return params
    return transfers.place_params(params, self.mesh)

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    if self.mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self.mesh)

  @functools.partial(jax.jit, static_argnums=(0, 5))
  def _generate(self, params, prompt, padding, words, sampling):
    """Completes prompts; `words` [G, N] are the data of PRNG keys."""
    keys = jax.random.wrap_key_data(rows_lib.flatten(words))
    if self.gather_dtype is not None:
      params = networks.gather_all(params, self.gather_dtype)
    done = generation.generate(
      self.model,
      params,
      prompt,
      padding,
      keys,
      self.num_tokens,
      self.end,
      sampling,
      observe=lambda *_: (),
      num_slots=self.num_slots,
    )
    done = rows_lib.unflatten((done.tokens, done.mask), len(words))
    return partitioning.replicate(done)

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def _read(self, params, tokens, padding, top_k):
    hidden, _ = self.model.hidden(params, tokens, padding)

    def read_text(row):  # Holds the logits of a single text at a time.
      own, hidden = row
      logits = self.model.head(params, hidden)
      nll = -numerics.action_log_prob(logits[:-1], own[1:])
      values, likeliest = jax.lax.top_k(logits[-1], top_k)
      return Reading(nll, likeliest, values)

    found = jax.lax.map(read_text, (jnp.asarray(tokens), hidden))
    return partitioning.replicate(found)

  @functools.partial(jax.jit, static_argnums=0)
  def _log_probs(self, params, prompt, padding, tokens):
    answers = rows_lib.flatten(tokens)
    hidden = generation.completion_hidden(
      self.model, params, prompt, padding, answers
    )

    def read_answer(row):  # Holds the logits of a single answer at a time.
      own, hidden = row
      return numerics.action_log_prob(self.model.head(params, hidden), own)

    found = jax.lax.map(read_answer, (answers, hidden))
    return partitioning.replicate(rows_lib.unflatten(found, len(tokens)))

  def _make_batches(
    self, prompts: Sequence[Sequence[int]], batch_size: int
  ) -> list[list[int]]:
    """Groups prompts of similar length into batches of row indices.

    The last batch repeats its last row, so that all batches have the same size,
    which the devices divide.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    size = max(1, min(batch_size, len(order)))
    if self.mesh is not None:
      size += -size % dict(self.mesh.shape)[partitioning.FSDP_AXIS]
    order += order[-1:] * (-len(order) % size)
    return [order[at : at + size] for at in range(0, len(order), size)]
