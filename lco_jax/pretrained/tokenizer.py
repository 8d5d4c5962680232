"""Tokenizers and chat templates of pretrained models.

Builds a tokenizer of the `tokenizers` package from a tokenizer.json or a GGUF
file's metadata. Chat templates come from untrusted files, so Jinja's sandbox
renders them.
"""

import dataclasses
import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lco_jax.pretrained import model_file

# GGUF's names of pre-tokenizers, which split text before byte-level BPE.
_GPT2_SPLIT = {"gpt-2", "smollm"}
_PATTERNS = {
  "llama-bpe": (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  ),
  "qwen2": (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  ),
}
# For this pre-tokenizer, llama.cpp ignores merges if the whole word is in the
# vocabulary, and puts a token before every text by default.
_LLAMA_3 = "llama-bpe"
_CONTROL, _USER_DEFINED = 3, 4


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer with its model's special tokens and chat template.

  Attributes:
    path: source file, for error messages.
    rules: tokenizer of the `tokenizers` package.
    end: tokens that end a text; training uses the first.
    begin: token before every text; None if there is none.
    template: Jinja source of the chat template; None if there is none.
  """

  path: pathlib.Path
  rules: tokenizers.Tokenizer
  end: tuple[int, ...]
  begin: int | None
  template: str | None

  @property
  def size(self) -> int:
    """Number of tokens, special ones included."""
    return self.rules.get_vocab_size(with_added_tokens=True)

  @property
  def vocabulary(self) -> dict[str, int]:
    """All tokens, {text of the token: its number}."""
    return self.rules.get_vocab(with_added_tokens=True)

  def encode(self, text: str, begins: bool = True) -> list[int]:
    """Encodes a text, which may contain special tokens.

    Args:
      text: the text.
      begins: whether to prepend the `begin` token, if there is one; False for
        chats, because the template writes it.
    """
    tokens = self.rules.encode(text, add_special_tokens=False).ids
    if self.begin is None or not begins:
      return tokens
    return [self.begin, *tokens]

  def decode(self, tokens: Sequence[int]) -> str:
    """Decodes tokens to text, without special tokens."""
    return self.rules.decode(list(tokens), skip_special_tokens=True)

  def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Renders a conversation as text, up to the assistant's next answer.

    Args:
      messages: {"role": system, user or assistant, "content": text} in order.

    Raises:
      ModelFileError: if the model has no template, or it cannot be rendered.
    """
    if self.template is None:
      raise model_file.ModelFileError(self.path, "has no chat template")
    try:
      return _compile_template(self.template).render(
        messages=list(messages),
        add_generation_prompt=True,
        bos_token="" if self.begin is None else self.token(self.begin),
        eos_token=self.token(self.end[0]),
      )
    except Exception as error:  # Templates are programs and may raise anything.
      raise model_file.ModelFileError(
        self.path, f"chat template: {error}"
      ) from error

  def token(self, number: int) -> str:
    """Text of a token."""
    return self.rules.id_to_token(number)


def from_gguf(path: pathlib.Path, metadata: Mapping[str, Any]) -> Tokenizer:
  """Builds the tokenizer described by a GGUF file's metadata.

  Raises:
    ModelFileError: if its kind is not supported or the metadata is malformed.
  """

  def get(key: str, kind: type | tuple, default: Any = None) -> Any:
    value = metadata.get(f"tokenizer.{key}", default)
    if not isinstance(value, kind):
      raise model_file.ModelFileError(
        path, f"tokenizer.{key} is missing or has a wrong type"
      )
    return value

  if get("ggml.model", str) != "gpt2":
    raise model_file.ModelFileError(
      path,
      f"tokenizer.ggml.model {metadata['tokenizer.ggml.model']!r} is not"
      " gpt2, byte-level BPE",
    )
  tokens = get("ggml.tokens", list)
  merges = [tuple(merge.split(" ")) for merge in get("ggml.merges", list)]
  if len(set(tokens)) < len(tokens):
    raise model_file.ModelFileError(
      path, "tokenizer.ggml.tokens lists a token twice"
    )
  kinds = list(get("ggml.token_type", (np.ndarray, tuple), ()))
  if len(kinds) not in (0, len(tokens)):
    raise model_file.ModelFileError(
      path, f"{len(kinds)} tokenizer.ggml.token_type, {len(tokens)} tokens"
    )
  vocabulary = {token: number for number, token in enumerate(tokens)}
  split = get("ggml.pre", str, "gpt-2")
  try:
    rules = tokenizers.Tokenizer(
      models.BPE(vocabulary, merges, ignore_merges=split == _LLAMA_3)
    )
    rules.pre_tokenizer = _make_pre_tokenizer(path, split)
    rules.decoder = decoders.ByteLevel()
    special = [t for t, k in zip(tokens, kinds, strict=False) if k == _CONTROL]
    rules.add_special_tokens(special)
    rules.add_tokens(
      [t for t, k in zip(tokens, kinds, strict=False) if k == _USER_DEFINED]
    )
  except model_file.ModelFileError:
    raise
  except Exception as error:  # The package raises no other type of its own.
    raise model_file.ModelFileError(path, f"tokenizer: {error}") from error
  own = {
    name: metadata.get(f"tokenizer.ggml.{name}_token_id")
    for name in ("bos", "eos", "eot")
  }
  for name, number in own.items():
    if number is not None and not (
      isinstance(number, int) and 0 <= number < len(tokens)
    ):
      raise model_file.ModelFileError(
        path, f"tokenizer.ggml.{name}_token_id {number!r} is no token"
      )
  if own["eos"] is None:
    raise model_file.ModelFileError(
      path, "tokenizer.ggml.eos_token_id is missing"
    )
  end = dict.fromkeys(own[n] for n in ("eos", "eot") if own[n] is not None)
  begins = get("ggml.add_bos_token", bool, split == _LLAMA_3)
  begin = own["bos"] if begins else None
  if begin is not None:  # Exported in tokenizer.json.
    rules.post_processor = processors.TemplateProcessing(
      single=f"{tokens[begin]} $A", special_tokens=[(tokens[begin], begin)]
    )
  return Tokenizer(
    path, rules, tuple(end), begin, get("chat_template", (str, type(None)))
  )


def from_folder(folder: pathlib.Path, config: Mapping[str, Any]) -> Tokenizer:
  """Builds a folder's tokenizer: tokenizer.json and tokenizer_config.json.

  Args:
    folder: folder of the model.
    config: merged config.json and generation_config.json, for eos_token_id.

  Raises:
    ModelFileError: if a file is missing or malformed.
  """
  path = folder / "tokenizer.json"
  text = model_file.read_text(path)
  try:
    rules = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The package raises no other type of its own.
    raise model_file.ModelFileError(path, error) from error
  options = model_file.read_json(folder / "tokenizer_config.json")
  template = options.get("chat_template")
  beside = folder / "chat_template.jinja"
  if template is None and beside.exists():
    template = model_file.read_text(beside)

  def number(name: str) -> int | None:
    token = options.get(name)
    token = token.get("content") if isinstance(token, Mapping) else token
    return rules.token_to_id(token) if isinstance(token, str) else None

  given = config.get("eos_token_id")
  end = given if isinstance(given, list) else [given]
  end = [number("eos_token"), *end]
  end = tuple(dict.fromkeys(token for token in end if token is not None))
  size = rules.get_vocab_size(with_added_tokens=True)
  if not end or not all(isinstance(t, int) and 0 <= t < size for t in end):
    raise model_file.ModelFileError(path, f"has no end-of-text token: {end}")
  # Llama 3 prepends the begin token by a template in tokenizer.json.
  first = rules.encode("a").ids[:1]
  begin = number("bos_token")
  return Tokenizer(
    path, rules, end, begin if first == [begin] else None, template
  )


def _make_pre_tokenizer(path: pathlib.Path, name: str):
  if name in _GPT2_SPLIT:
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if name == "smollm":
      parts = [pre_tokenizers.Digits(individual_digits=True), *parts]
    return pre_tokenizers.Sequence(parts)
  if name in _PATTERNS:
    return pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(
          tokenizers.Regex(_PATTERNS[name]), behavior="isolated"
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  known = sorted(_GPT2_SPLIT | _PATTERNS.keys())
  raise model_file.ModelFileError(
    path, f"tokenizer.ggml.pre {name!r} is not among {', '.join(known)}"
  )


@functools.cache
def _compile_template(template: str) -> jinja2.Template:
  """Compiles a template with the helpers that model templates expect."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
  )

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment.globals["raise_exception"] = refuse
  environment.globals["strftime_now"] = datetime.datetime.now().strftime
  environment.filters["tojson"] = functools.partial(
    json.dumps, ensure_ascii=False
  )
  return environment.from_string(template)
