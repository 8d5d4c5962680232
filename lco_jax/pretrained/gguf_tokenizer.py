"""Tokenizers in the metadata of GGUF files.

Two kinds are read: byte-level BPE ("gpt2"), whose merges are listed, and
SentencePiece's BPE ("llama"), whose merges follow from the scores of its
pieces.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from lco_jax.pretrained import chat_template, model_file
from lco_jax.pretrained import tokenizer as tokenizer_lib

# llama.cpp's names of pre-tokenizers, which split text before byte-level BPE.
_GPT2_SPLIT = {"gpt-2", "smollm"}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
  "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
  "qwen2": _WORDS + r"\p{N}" + _REST,
}
# For this pre-tokenizer, llama.cpp ignores merges if the whole word is in the
# vocabulary, and puts a token before every text by default.
_LLAMA_3 = "llama-bpe"
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_KINDS = {"gpt2": "byte-level BPE", "llama": "SentencePiece's BPE"}
# transformers' names of special tokens, by GGUF's.
_SPECIAL_NAMES = {
  "bos": "bos_token",
  "eos": "eos_token",
  "unknown": "unk_token",
  "seperator": "sep_token",  # GGUF's spelling.
  "padding": "pad_token",
  "cls": "cls_token",
  "mask": "mask_token",
}
# Tokens that end a text, a turn and a message.
_ENDS = ("eos", "eot", "eom")
# Characters of a piece; the time to list its merges grows with their square.
_MAX_PIECE = 1000
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class _Metadata:
  """Entries tokenizer.ggml.KEY; errors name the file and the key."""

  def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
    self.path, self._values = path, values

  def get(self, key: str, kind: type | tuple, default: Any = None) -> Any:
    value = self._values.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, kind):
      raise self.error(f"tokenizer.ggml.{key} is missing or has a wrong type")
    return value

  def error(self, problem: str) -> model_file.ModelFileError:
    return model_file.ModelFileError(self.path, problem)


def read(
  path: pathlib.Path,
  values: Mapping[str, Any],
  options: tokenizer_lib.Options,
) -> tokenizer_lib.Tokenizer:
  """Builds the tokenizer that a GGUF file's metadata describe.

  Args:
    path: of the file.
    values: its metadata.
    options: the user's, for what the file does not say.

  Raises:
    ModelFileError: if the kind of tokenizer is not supported, or the metadata
      are malformed.
  """
  metadata = _Metadata(path, values)
  kind = metadata.get("model", str)
  if kind not in _KINDS:
    known = " and ".join(f"{name}, {text}" for name, text in _KINDS.items())
    raise metadata.error(
      f"tokenizer.ggml.model {kind!r} is not supported; {known}, are"
    )
  tokens = metadata.get("tokens", list)
  if len(set(tokens)) < len(tokens):
    raise metadata.error("tokenizer.ggml.tokens lists a token twice")
  kinds = list(metadata.get("token_type", (np.ndarray, tuple), ()))
  if len(kinds) not in (0, len(tokens)):
    raise metadata.error(
      f"{len(kinds)} tokenizer.ggml.token_type, {len(tokens)} tokens"
    )
  split = None
  try:
    if kind == "gpt2":
      split = _choose_pre_tokenizer(metadata, options)
      rules = _make_byte_level(metadata, tokens, split)
    else:
      rules = _make_sentence_piece(metadata, tokens, kinds)
    _add_tokens(rules, tokens, kinds)
  except model_file.ModelFileError:
    raise
  except Exception as error:  # The package raises no other type of its own.
    raise metadata.error(f"tokenizer: {error}") from error
  numbers = {
    name: _read_number(metadata, name, len(tokens))
    for name in (*_SPECIAL_NAMES, *_ENDS)
  }
  special = {
    own: tokens[numbers[name]]
    for name, own in _SPECIAL_NAMES.items()
    if numbers[name] is not None
  }
  ends = tokenizer_lib.find_ends(
    path, rules, [numbers[name] for name in _ENDS], options
  )
  begins = metadata.get(
    "add_bos_token", bool, kind == "llama" or split == _LLAMA_3
  )
  begin = numbers["bos"] if begins else None
  if begin is not None:  # Exported in tokenizer.json.
    rules.post_processor = processors.TemplateProcessing(
      single=f"{tokens[begin]} $A", special_tokens=[(tokens[begin], begin)]
    )
  template = chat_template.choose(path, values.get("tokenizer.chat_template"))
  return tokenizer_lib.Tokenizer(
    path, rules, ends, begin, template, special, options.date
  )


def _read_number(metadata: _Metadata, name: str, size: int) -> int | None:
  """Reads a special token's number; None if the file has none."""
  number = metadata.get(f"{name}_token_id", (int, type(None)))
  if number is None:
    return None
  if isinstance(number, bool) or not 0 <= number < size:
    raise metadata.error(
      f"tokenizer.ggml.{name}_token_id {number!r} is no token"
    )
  return number


def _add_tokens(rules, tokens: Sequence[str], kinds: Sequence[int]) -> None:
  """Adds the tokens that are found in a text before all others."""
  own = list(zip(tokens, kinds, strict=False))
  rules.add_special_tokens([token for token, kind in own if kind == _CONTROL])
  rules.add_tokens(
    [
      tokenizers.AddedToken(token, normalized=False)
      for token, kind in own
      if kind == _USER_DEFINED
    ]
  )


def _choose_pre_tokenizer(
  metadata: _Metadata, options: tokenizer_lib.Options
) -> str:
  """Chooses how text is split: as the user says, else as the file says."""
  known = sorted(_GPT2_SPLIT | _PATTERNS.keys())
  said = metadata.get("pre", (str, type(None)))
  name = options.pre_tokenizer or said
  if name in known:
    return name
  where = "pre_tokenizer" if options.pre_tokenizer else "tokenizer.ggml.pre"
  problem = f"{where} {name!r} is not among {', '.join(known)}"
  if name is None or name == "default":
    problem = (
      f"tokenizer.ggml.pre is {'missing' if name is None else repr(name)}, so"
      " how text is split would be a guess; set pre_tokenizer to one of"
      f" {', '.join(known)}"
    )
  raise metadata.error(problem)


def _make_byte_level(metadata, tokens, split: str) -> tokenizers.Tokenizer:
  """Byte-level BPE with the merges that the file lists."""
  merges = [tuple(merge.split(" ")) for merge in metadata.get("merges", list)]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  rules = tokenizers.Tokenizer(
    models.BPE(vocabulary, merges, ignore_merges=split == _LLAMA_3)
  )
  rules.pre_tokenizer = _make_pre_tokenizer(split)
  rules.decoder = decoders.ByteLevel()
  return rules


def _make_pre_tokenizer(split: str) -> pre_tokenizers.PreTokenizer:
  if split in _GPT2_SPLIT:
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if split == "smollm":
      parts = [pre_tokenizers.Digits(individual_digits=True), *parts]
  else:
    pattern = tokenizers.Regex(_PATTERNS[split])
    parts = [
      pre_tokenizers.Split(pattern, behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  return pre_tokenizers.Sequence(parts)


def _make_sentence_piece(metadata, tokens, kinds) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: unknown characters become bytes.

  If a space is put before texts, then also, as in llama.cpp, behind special
  tokens.
  """
  scores = metadata.get("scores", np.ndarray)
  if len(scores) != len(tokens) or len(kinds) != len(tokens):
    raise metadata.error(
      f"{len(scores)} tokenizer.ggml.scores and {len(kinds)}"
      f" tokenizer.ggml.token_type for {len(tokens)} tokens"
    )
  vocabulary = {token: number for number, token in enumerate(tokens)}
  unknown = metadata.get("unknown_token_id", (int, type(None)))
  known = unknown is not None and 0 <= unknown < len(tokens)
  rules = tokenizers.Tokenizer(
    models.BPE(
      vocabulary,
      _list_merges(vocabulary, scores, kinds),
      unk_token=tokens[unknown] if known else None,
      fuse_unk=True,
      byte_fallback=_BYTE in kinds,
    )
  )
  spaces = [normalizers.Replace(" ", _SPACE)]
  decoding = [
    decoders.Replace(_SPACE, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if metadata.get("add_space_prefix", bool, True):
    spaces = [normalizers.Prepend(_SPACE), *spaces]
    decoding.append(decoders.Strip(" ", 1, 0))
  rules.normalizer = normalizers.Sequence(spaces)
  rules.decoder = decoders.Sequence(decoding)
  return rules


def _list_merges(vocabulary, scores, kinds) -> list[tuple[str, str]]:
  """Lists the merges that make each piece, the best piece first.

  SentencePiece merges the two neighbours whose joint piece has the best score.
  """
  normal = {
    token: number
    for token, number in vocabulary.items()
    if kinds[number] == _NORMAL
  }
  found = []
  longest = max(map(len, normal), default=0)
  if longest > _MAX_PIECE:
    raise ValueError(f"a piece has {longest} characters")
  for token, number in normal.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in normal and right in normal:
        # Of merges that make one piece, that of the earlier parts comes first.
        order = (-scores[number], number, normal[left], normal[right])
        found.append((order, (left, right)))
  return [merge for _, merge in sorted(found)]
