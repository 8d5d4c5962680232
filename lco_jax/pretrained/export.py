"""Export of a model in transformers' format: config, weights, tokenizer."""

import json
import os
import pathlib
import shutil

from safetensors import numpy as safetensors_numpy

from lco_jax import types
from lco_jax.pretrained import architecture, model, weights


def export(
  pretrained: model.Pretrained, params: types.Params, folder: pathlib.Path
) -> None:
  """Writes a folder that `load` and transformers can read.

  Writes to a temporary folder beside `folder` and renames it when complete.

  Args:
    pretrained: provides the configuration and the tokenizer to write.
    params: parameters of the model, on the host; written as float32.
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
  config = architecture.to_transformers(pretrained.config)
  ends = {
    "eos_token_id": list(tokenizer.end),
    "bos_token_id": tokenizer.begin,
    "pad_token_id": tokenizer.end[0],
  }
  config |= ends | {"max_position_embeddings": pretrained.context_length}
  safetensors_numpy.save_file(
    dict(weights.from_params(pretrained.config, params)),
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  begin = None if tokenizer.begin is None else tokenizer.token(tokenizer.begin)
  files = {
    "config.json": config,
    "generation_config.json": ends,
    "tokenizer_config.json": {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": tokenizer.token(tokenizer.end[0]),
      "bos_token": begin,
      "chat_template": tokenizer.template,
      "clean_up_tokenization_spaces": False,
      "model_max_length": pretrained.context_length,
    },
  }
  for name, values in files.items():
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / name).write_text(text + "\n", encoding="utf-8")
  tokenizer.rules.save(str(folder / "tokenizer.json"))
