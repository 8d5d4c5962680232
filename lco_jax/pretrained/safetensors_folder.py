"""Reader of a folder of safetensors, as transformers writes it.

config.json, tokenizer.json, tokenizer_config.json
model.safetensors, else model.safetensors.index.json and the files that it names
"""

import pathlib

import numpy as np
import safetensors

from lco_jax.pretrained import model_file

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Suffixes of buffers that old files contain beside the weights.
_IGNORED = ("rotary_emb.inv_freq",)


def read_tensors(
  folder: pathlib.Path, tied_embeddings: bool
) -> dict[str, model_file.Tensor]:
  """Lists a folder's tensors by name; `Tensor.read` later reads them.

  Args:
    folder: folder of the model.
    tied_embeddings: whether the output layer shares the embedding's weights;
      then a copy of them, which some files contain, is ignored.

  Raises:
    ModelFileError: if a file is missing or malformed, or the output layer's
      weights are no copy of the embedding's.
  """
  index = folder / _INDEX
  # As in transformers, the whole file counts if there are both.
  if (folder / _WHOLE).exists() or not index.exists():
    found = _read_file(folder / _WHOLE)
  else:
    places = model_file.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in places.values()
    ):
      raise model_file.ModelFileError(index, "has no weight_map of file names")
    shards = {name: _read_file(folder / name) for name in set(places.values())}
    found = {}
    for name, shard in places.items():
      if name not in shards[shard]:
        raise model_file.ModelFileError(
          folder / shard, f"tensor {name} is missing"
        )
      found[name] = shards[shard][name]
  head = found.pop(_HEAD, None) if tied_embeddings else None
  if head is not None and not _are_equal(head, found.get(_EMBEDDING)):
    raise model_file.ModelFileError(
      folder,
      "tie_word_embeddings says that the embedding is the output layer, but"
      f" tensor {_HEAD} is another",
    )
  return {k: v for k, v in found.items() if not k.endswith(_IGNORED)}


def _are_equal(one: model_file.Tensor, other: model_file.Tensor | None) -> bool:
  if other is None or one.shape != other.shape:
    return False
  return np.array_equal(one.read(), other.read())


def _read_file(path: pathlib.Path) -> dict[str, model_file.Tensor]:
  try:
    # "flax" knows bfloat16, which NumPy does not.
    file = safetensors.safe_open(path, framework="flax")
    names = list(file.keys())  # The file object is not iterable.
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
  except (OSError, safetensors.SafetensorError) as error:
    raise model_file.ModelFileError(path, f"cannot be read: {error}") from error

  def make_tensor(name):
    def read():
      return np.asarray(file.get_tensor(name)).astype(np.float32)

    return model_file.Tensor(shapes[name], read)

  return {name: make_tensor(name) for name in shapes}
