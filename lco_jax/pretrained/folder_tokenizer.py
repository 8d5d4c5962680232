"""Tokenizers of folders in transformers' format.

tokenizer.json, tokenizer_config.json; where there are, special_tokens_map.json
and chat_template.jinja. Of two files that disagree, that counts which counts in
transformers.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

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
  # Left by training; prompts are neither cut nor filled up.
  rules.no_truncation()
  rules.no_padding()
  values = model_file.read_json(folder / "tokenizer_config.json")
  special = _read_special_tokens(folder, values)
  numbers = {name: rules.token_to_id(text) for name, text in special.items()}
  ends = tokenizer_lib.find_ends(
    path, rules, [numbers.get("eos_token"), *ends], options
  )
  _check_added_tokens(folder, rules, values)
  # By the post-processor alone, as in transformers: add_bos_token counts only
  # where there is no tokenizer.json.
  first, begin = rules.encode("a").ids[:1], numbers.get("bos_token")
  begin = begin if first == [begin] else None
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


def _check_added_tokens(folder, rules, values) -> None:
  """Refuses tokens that only tokenizer_config.json has."""
  path = folder / "tokenizer_config.json"
  added = values.get("added_tokens_decoder", {})
  if not isinstance(added, Mapping):
    raise model_file.ModelFileError(path, "added_tokens_decoder is no table")
  for number, token in added.items():
    text = token.get("content") if isinstance(token, Mapping) else None
    if not isinstance(text, str) or str(rules.token_to_id(text)) != number:
      raise model_file.ModelFileError(
        path,
        f"added_tokens_decoder: tokenizer.json has no {text!r}, {number}",
      )
