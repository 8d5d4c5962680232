"""Tokenizers of folders in transformers' format.

tokenizer.json, tokenizer_config.json; where there are, special_tokens_map.json
and chat_template.jinja. Of two files that disagree, that counts which counts in
transformers.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import processors

from lco_jax.pretrained import chat_template, model_file
from lco_jax.pretrained import tokenizer as tokenizer_lib


def read(
  folder: pathlib.Path,
  ends: Sequence[int],
  options: tokenizer_lib.Options,
) -> tokenizer_lib.Tokenizer:
  """Builds a folder's tokenizer.

  Args:
    folder: of the model.
    ends: end-of-text tokens of config.json and generation_config.json.
    options: what the files leave open.

  Raises:
    ModelFileError: if a file is missing or malformed.
  """
  path = folder / "tokenizer.json"
  text = model_file.read_text(path)
  try:
    rules = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The package raises no other type of its own.
    raise model_file.ModelFileError(path, error) from error
  values = model_file.read_json(folder / "tokenizer_config.json")
  special = _read_special_tokens(folder, values)
  numbers = {name: rules.token_to_id(text) for name, text in special.items()}
  ends = tokenizer_lib.find_ends(
    path, rules, [numbers.get("eos_token"), *ends], options
  )
  begin = _set_begin(path, rules, values, special, numbers.get("bos_token"))
  return tokenizer_lib.Tokenizer(
    path,
    rules,
    ends,
    begin,
    _read_template(folder, values),
    special,
    options.date,
  )


def _read_special_tokens(folder, values) -> dict[str, str]:
  """Texts of special tokens by name."""
  given = dict(values)
  older = folder / "special_tokens_map.json"
  if "added_tokens_decoder" not in values and older.exists():
    given |= model_file.read_json(older)
  found = {}
  for name in tokenizer_lib.SPECIAL_NAMES:
    token = given.get(name)
    token = token.get("content") if isinstance(token, Mapping) else token
    if token is None:
      continue
    if not isinstance(token, str):
      raise model_file.ModelFileError(
        folder / "tokenizer_config.json", f"{name} {token!r} is no text"
      )
    found[name] = token
  return found


def _read_template(folder: pathlib.Path, values: Mapping[str, Any]):
  """The chat template: a file of its own counts before the configuration."""
  own = folder / "chat_template.jinja"
  if own.exists():
    return model_file.read_text(own)
  path = folder / "tokenizer_config.json"
  return chat_template.choose(path, values.get("chat_template"))


def _set_begin(path, rules, values, special, number) -> int | None:
  """The token before every text, None if there is none.

  tokenizer.json adds it by its post-processor. If tokenizer_config.json has
  add_bos_token or add_eos_token, these alone decide.
  """
  decides = [values.get(f"add_{name}_token") for name in ("bos", "eos")]
  if decides != [None, None]:
    if not all(isinstance(own, bool | None) for own in decides):
      raise model_file.ModelFileError(
        path.with_name("tokenizer_config.json"),
        "add_bos_token and add_eos_token are neither true nor false",
      )
    begins = bool(decides[0]) and number is not None
    text = special["bos_token"] if begins else None
    rules.post_processor = processors.TemplateProcessing(
      single=f"{text} $A" if begins else "$A",
      special_tokens=[(text, number)] if begins else [],
    )
  # Llama 3 prepends the begin token by a template in tokenizer.json.
  first = rules.encode("a").ids[:1]
  return number if number is not None and first == [number] else None
