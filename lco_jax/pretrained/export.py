"""Export of a model in transformers' format: config, weights, tokenizer."""

import json
import os
import pathlib
import shutil

from safetensors import numpy as safetensors_numpy

from lco_jax import networks, types
from lco_jax.pretrained import families, model, weights


def export(
  pretrained: model.Pretrained, params: types.Params, folder: pathlib.Path
) -> None:
  """Writes a folder that `load` and transformers can read.

  Writes to a temporary folder beside `folder` and renames it when complete.

  Args:
    pretrained: provides the configuration and the tokenizer to write.
    params: parameters of the model, on the host; written as float32, narrow
      matrices widened.
    folder: destination, which must not exist.

  Raises:
    FileExistsError: if the folder exists.
    OSError: if it cannot be written.
  """
  if folder.exists():
    raise FileExistsError(f"{folder} exists")
  folder.parent.mkdir(parents=True, exist_ok=True)
  # The caller holds the run directory's lock: partial folders are from killed
  # processes.
  prefix = f".{folder.name}.partial-"
  for left in folder.parent.iterdir():
    if left.name.startswith(prefix):
      shutil.rmtree(left)
  partial = folder.with_name(f"{prefix}{os.getpid()}")
  try:
    partial.mkdir()
    _write(pretrained, params, partial)
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _write(pretrained, params, folder):
  tokenizer = pretrained.tokenizer
  family = families.FAMILIES[pretrained.config_json["model_type"]]
  safetensors_numpy.save_file(
    dict(
      weights.from_params(pretrained.config, networks.widen(params), family)
    ),
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  files = {
    "config.json": _make_config(pretrained, family),
    "generation_config.json": {
      **pretrained.generation_config,
      **_number_ends(tokenizer),
    },
    "tokenizer_config.json": {
      "tokenizer_class": "PreTrainedTokenizerFast",
      **tokenizer.special,
      # Batches need padding; its token is that of `tokenizer.padding`.
      "pad_token": tokenizer.token(tokenizer.padding),
      "eos_token": tokenizer.token(tokenizer.end[0]),
      "chat_template": tokenizer.template,
      "clean_up_tokenization_spaces": False,
      "model_max_length": pretrained.context_length,
    },
  }
  for name, values in files.items():
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / name).write_text(text + "\n", encoding="utf-8")
  tokenizer.rules.save(str(folder / "tokenizer.json"))


def _make_config(pretrained, family):
  """config.json as it was read, with the weights' dtype and special tokens."""
  values = dict(pretrained.config_json)
  for name in ("auto_map", "dtype", "transformers_version", "_name_or_path"):
    values.pop(name, None)
  return {
    **values,
    "architectures": [family.class_name],
    "torch_dtype": "float32",
    **_number_ends(pretrained.tokenizer),
  }


def _number_ends(tokenizer):
  """Numbers of the special tokens that generation needs."""
  begin = tokenizer.special.get("bos_token", "")
  return {
    "eos_token_id": list(tokenizer.end),
    "bos_token_id": tokenizer.rules.token_to_id(begin),
    "pad_token_id": tokenizer.padding,
  }
