"""Reader of a folder of safetensors, as transformers writes it.

config.json, tokenizer.json, tokenizer_config.json
model.safetensors, else model.safetensors.index.json and the files that it names
"""

import json
import pathlib
import struct

import ml_dtypes
import numpy as np
import safetensors

from lco_jax.pretrained import model_file

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Suffixes of buffers that old files contain beside the weights.
_IGNORED = ("rotary_emb.inv_freq",)
# Rows of an embedding that are compared at a time.
_ROWS = 4096
# Types of weights, by their names in files.
_TYPES = {
  "BF16": ml_dtypes.bfloat16,
  "F16": np.float16,
  "F32": np.float32,
  "F64": np.float64,
}


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
  if other is None or one.shape != other.shape or len(one.shape) != 2:
    return False
  blocks = [slice(i, i + _ROWS) for i in range(0, one.shape[0], _ROWS)]
  return all(
    np.array_equal(*(x.read_part((rows, slice(None))) for x in (one, other)))
    for rows in blocks
  )


def _read_file(path: pathlib.Path) -> dict[str, model_file.Tensor]:
  try:
    # Checks the whole header: types, and that offsets fit shapes and file.
    with safetensors.safe_open(path, framework="numpy"):
      pass
    with path.open("rb") as file:
      (size,) = struct.unpack("<Q", file.read(8))
      header = json.loads(file.read(size))
  except (OSError, safetensors.SafetensorError) as error:
    raise model_file.ModelFileError(path, f"cannot be read: {error}") from error
  header.pop("__metadata__", None)
  for name, entry in header.items():
    if entry["dtype"] not in _TYPES and not name.endswith(_IGNORED):
      raise model_file.ModelFileError(
        path,
        f"tensor {name} is {entry['dtype']}; only {', '.join(_TYPES)} are"
        " supported",
      )
  return {
    name: _make_tensor(path, 8 + size, entry) for name, entry in header.items()
  }


def _make_tensor(path: pathlib.Path, begin: int, entry) -> model_file.Tensor:
  """Makes a tensor from its entry in the header.

  Args:
    path: of the file.
    begin: byte at which the data begin.
    entry: dtype, shape and offsets of the tensor.
  """
  shape = tuple(entry["shape"])

  def read_part(index):
    mapped = model_file.map_array(
      path,
      _TYPES[entry["dtype"]],
      begin + entry["data_offsets"][0],
      shape,
    )
    return np.array(mapped[tuple(index)], np.float32)

  return model_file.Tensor(shape, read_part)
