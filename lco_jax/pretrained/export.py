"""Export of a model in transformers' format: config, weights, tokenizer."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from lco_jax import networks, types
from lco_jax.pretrained import families, model, weights

# Bytes of a file of weights, at most; larger models are written as several.
_FILE_BYTES = 2 * 2**30


def export(
  pretrained: model.Pretrained,
  params: types.Params,
  folder: pathlib.Path,
  read: Callable[[Any], np.ndarray] = np.asarray,
  writes: bool = True,
) -> None:
  """Writes a folder that `load` and transformers can read.

  Writes to a temporary folder beside `folder` and renames it when complete.
  Holds the weights of one file, and their bytes, at a time.

  Args:
    pretrained: provides the configuration and the tokenizer to write.
    params: parameters of the model, on the host or on devices; written as
      float32, narrow matrices widened.
    folder: destination, which must not exist.
    read: an array of the parameters, of one layer → that on the host. Of a job
      of several processes, all call it in the same order.
    writes: whether this process writes; else it only reads with those that do.

  Raises:
    FileExistsError: if the folder exists.
    OSError: if it cannot be written.
  """
  if not writes:
    for _ in _list_weights(pretrained, params, read):
      pass
    return
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
    _write(pretrained, _list_weights(pretrained, params, read), partial)
    partial.rename(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _list_weights(pretrained, params, read):
  """Yields (transformers' name, float32 array)."""
  if networks.is_narrow(params):
    params = networks.widen(params)
  family = families.FAMILIES[pretrained.config_json["model_type"]]
  return weights.from_params(pretrained.config, params, family, read)


def _write_weights(
  found: Iterator[tuple[str, np.ndarray]], folder: pathlib.Path
) -> None:
  """Writes weights as one file, or as several with an index."""
  files, own, size, total = [], {}, 0, 0

  def close_file():
    path = folder / f"{len(files)}.safetensors"
    safetensors_numpy.save_file(own, path, metadata={"format": "pt"})
    files.append(list(own))

  for name, weight in found:
    if own and size + weight.nbytes > _FILE_BYTES:
      close_file()
      own, size = {}, 0
    own[name] = weight
    size += weight.nbytes
    total += weight.nbytes
  close_file()
  if len(files) == 1:
    (folder / "0.safetensors").rename(folder / "model.safetensors")
    return
  places = {}
  for number, names in enumerate(files):
    file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
    (folder / f"{number}.safetensors").rename(folder / file)
    places |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": total}, "weight_map": places}
  (folder / "model.safetensors.index.json").write_text(
    json.dumps(index, indent=2) + "\n", encoding="utf-8"
  )


def _write(pretrained, found, folder):
  tokenizer = pretrained.tokenizer
  family = families.FAMILIES[pretrained.config_json["model_type"]]
  _write_weights(found, folder)
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
