"""Reading a folder of safetensors, as transformers writes it.

config.json, tokenizer.json, tokenizer_config.json
model.safetensors, or model.safetensors.index.json and what it names
"""

import pathlib

import numpy as np
import safetensors

from lco_jax.pretrained import model_file

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Buffers that old files hold beside weights; and the output layer, which some
# hold although it is the embedding.
_IGNORED = ("rotary_emb.inv_freq",)


def tensors(
  folder: pathlib.Path, tied_embeddings: bool
) -> dict[str, model_file.Tensor]:
  """All tensors of a folder by name; they are read when asked for.

  Args:
    folder: of the model.
    tied_embeddings: whether the output layer is the embedding.

  Raises:
    ModelFileError: if a file is missing or malformed.
  """
  index = folder / _INDEX
  if not index.exists():
    found = _of_file(folder / _WHOLE)
  else:
    places = model_file.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in places.values()
    ):
      raise model_file.ModelFileError(index, "has no weight_map of file names")
    shards = {name: _of_file(folder / name) for name in set(places.values())}
    found = {}
    for name, shard in places.items():
      if name not in shards[shard]:
        raise model_file.ModelFileError(
          folder / shard, f"tensor {name} is missing"
        )
      found[name] = shards[shard][name]
  if tied_embeddings:
    found.pop("lm_head.weight", None)
  return {k: v for k, v in found.items() if not k.endswith(_IGNORED)}


def _of_file(path: pathlib.Path) -> dict[str, model_file.Tensor]:
  try:
    # "flax" knows bfloat16, which NumPy does not.
    file = safetensors.safe_open(path, framework="flax")
    names = list(file.keys())  # It is no mapping.
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
  except (OSError, safetensors.SafetensorError) as error:
    raise model_file.ModelFileError(path, f"cannot be read: {error}") from error

  def tensor(name):
    def read():
      return np.asarray(file.get_tensor(name)).astype(np.float32)

    return model_file.Tensor(shapes[name], read)

  return {name: tensor(name) for name in shapes}
