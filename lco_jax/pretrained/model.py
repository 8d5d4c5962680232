"""Loading of a pretrained model by its name, file or folder."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from lco_jax import networks, types
from lco_jax.pretrained import (
  config_json,
  folder_tokenizer,
  gguf_config,
  gguf_file,
  gguf_shards,
  gguf_tokenizer,
  model_file,
  packaged,
  safetensors_folder,
  shapes,
  stored_array,
  tokenizer,
  weights,
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A pretrained model.

  Attributes:
    config: sizes and options, with dtype float32.
    params: float32 parameters, on the host, or StoredArrays.
    tokenizer: converts text to tokens and back.
    context_length: context length in tokens.
    config_json: content of config.json, read or made from a GGUF file, that
      exports keep.
    generation_config: content of generation_config.json, likewise.
  """

  config: networks.TransformerConfig
  params: types.Params
  tokenizer: tokenizer.Tokenizer
  context_length: int
  config_json: Mapping[str, Any]
  generation_config: Mapping[str, Any]

  def config_with(self, **options) -> networks.TransformerConfig:
    """Returns the configuration with other options, such as dtype."""
    return dataclasses.replace(self.config, **options)


Check = Callable[[networks.TransformerConfig], None]


def load(
  name: str,
  options: tokenizer.Options | None = None,
  check: Check = lambda config: None,
) -> Pretrained:
  """Loads a model of one of the `families`.

  Arguments are those of `open_model`.

  Raises:
    ModelFileError: as of `open_model`, or if a weight is not finite.
  """
  opened = open_model(name, options, check)
  params = stored_array.read_all(opened.params)
  return dataclasses.replace(opened, params=params)


def open_model(
  name: str,
  options: tokenizer.Options | None = None,
  check: Check = lambda config: None,
) -> Pretrained:
  """Opens a model whose parameters are read by parts when they are needed.

  Args:
    name: a key of PACKAGED, for a model inside a Python package; a GGUF file,
      or one of several that a model is divided over; a folder of safetensors;
      or a hub id, such as HuggingFaceTB/SmolLM2-135M, if it has been
      downloaded.
    options: what the files leave open about their texts.
    check: takes the configuration before the weights are read; may raise.

  Raises:
    ModelFileError: if there is no such model, or it is not supported.
  """
  options = options or tokenizer.Options()
  path = pathlib.Path(name)
  if name in packaged.PACKAGED or path.is_file():
    return _load_gguf(_read_gguf(name), options, check)
  if path.is_dir():
    return _load_folder(path, options, check)
  return _load_folder(packaged.find_downloaded(name), options, check)


def read_config(name: str) -> networks.TransformerConfig:
  """Reads the configuration of a model, without its weights.

  Args:
    name: as of `load`, a folder that holds a config.json alone, or a key of
      `shapes.SHAPES`.

  Raises:
    ModelFileError: as of `load`.
  """
  path = pathlib.Path(name)
  if name in shapes.SHAPES:
    values = shapes.SHAPES[name]
  elif name in packaged.PACKAGED or path.is_file():
    file = _read_gguf(name)
    path, values = file.path, gguf_config.to_config_json(file)
  else:
    folder = path if path.is_dir() else packaged.find_downloaded(name)
    path = folder / "config.json"
    values = model_file.read_json(path)
  return config_json.read(path, values).transformer


def _read_gguf(name: str) -> gguf_file.GgufFile:
  """Reads the GGUF file of a packaged model, or at a path."""
  if name in packaged.PACKAGED:
    return gguf_file.read(*packaged.list_parts(name))
  return gguf_shards.read(pathlib.Path(name))


def _load_gguf(
  file: gguf_file.GgufFile, options: tokenizer.Options, check: Check
) -> Pretrained:
  values = gguf_config.to_config_json(file)
  own = config_json.read(file.path, values)
  check(own.transformer)
  text = gguf_tokenizer.read(file.path, file.metadata, options)
  _check_vocabulary(file.path, text, own.transformer)
  tensors = gguf_config.convert_tensors(file, values)
  params = weights.to_params(file.path, own.transformer, tensors, own.family)
  return Pretrained(
    own.transformer, params, text, own.context_length, values, {}
  )


def _load_folder(
  folder: pathlib.Path, options: tokenizer.Options, check: Check
) -> Pretrained:
  path = folder / "config.json"
  values = model_file.read_json(path)
  own = config_json.read(path, values)
  check(own.transformer)
  generation = {}
  if (folder / "generation_config.json").exists():
    generation = model_file.read_json(folder / "generation_config.json")
  ends = [
    end
    for place in (generation, values)
    for end in _as_list(place.get("eos_token_id"))
  ]
  text = folder_tokenizer.read(folder, ends, options)
  _check_vocabulary(text.path, text, own.transformer)
  tensors = safetensors_folder.read_tensors(
    folder, own.transformer.tied_embeddings
  )
  params = weights.to_params(folder, own.transformer, tensors, own.family)
  return Pretrained(
    own.transformer, params, text, own.context_length, values, generation
  )


def _as_list(value: Any) -> list:
  return value if isinstance(value, list) else [value]


def _check_vocabulary(path, own, config):
  if own.size > config.vocab_size:
    raise model_file.ModelFileError(
      path,
      f"tokenizer of {own.size} tokens for an embedding of {config.vocab_size}",
    )
