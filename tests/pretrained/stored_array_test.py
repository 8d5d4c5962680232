"""Weights that stay in their files, and are read by parts."""

import json
import pathlib
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from lco_jax import pretrained
from lco_jax.pretrained import stored_array
from lco_jax.training import placement, transfers
from tests import tiny_model
from tests.pretrained import families_test


@pytest.fixture(params=["gguf", "folder", "fused"])
def path(request, texts, tmp_path):
  """A model's file or folder; in it are transposed and fused matrices."""
  if request.param == "gguf":
    tiny_model.write_gguf(tmp_path / "tiny.gguf", tiny_model.weights())
    return tmp_path / "tiny.gguf"
  if request.param == "folder":
    return texts
  values = json.loads((texts / "config.json").read_text())
  values |= {"model_type": "phi3"}
  return families_test.write_model(tmp_path / "fused", texts, values)


def test_parts_are_those_of_the_whole(path):
  opened, whole = (
    read(str(path)).params for read in (pretrained.open_model, pretrained.load)
  )

  def compare(stored, array):
    assert isinstance(stored, pretrained.StoredArray)
    assert (stored.shape, stored.dtype) == (array.shape, array.dtype)
    assert array.flags.writeable and array.flags.owndata  # No view of a file.
    np.testing.assert_array_equal(np.asarray(stored), array)
    for axis, size in enumerate(array.shape):
      for part in (slice(size // 2), slice(size // 2, size), slice(1, 1)):
        index = tuple(
          part if at == axis else slice(None) for at in range(array.ndim)
        )
        np.testing.assert_array_equal(stored[index], array[index])

  jax.tree.map(compare, opened, whole)


@pytest.mark.parametrize("sizes", ["fsdp:8", "fsdp:4,tensor:2"])
def test_devices_read_their_parts_alone(path, sizes):
  opened = pretrained.open_model(str(path)).params
  largest = {}

  def watch(array):
    def read(index):
      part = array.read(index)
      largest[array.shape] = max(largest.get(array.shape, 0), part.size)
      return part

    return stored_array.StoredArray(array.shape, read)

  watched = jax.tree.map(watch, opened)
  mesh = placement.make_mesh(1, 8, jax.devices(), placement.parse_sizes(sizes))
  placed = transfers.place_params(watched, mesh)
  jax.tree.map(np.testing.assert_array_equal, placed, opened)
  embedding = opened["params"]["embed"]["embedding"].shape
  kernel = opened["params"]["blocks"]["up"]["kernel"].shape
  for shape in (embedding, kernel):
    assert largest[shape] == np.prod(shape) // 8


def test_all_seeds_share_an_array_in_a_file(texts):
  stored = pretrained.open_model(str(texts)).params["params"]
  embedding = stored["embed"]["embedding"]
  repeated = transfers.Repeated(embedding, 2)
  assert repeated.shape == (2, *embedding.shape)
  mesh = placement.make_mesh(2, 2, jax.devices()[:2])
  placed = transfers.to_devices(repeated, mesh, placement.SEEDS)
  np.testing.assert_array_equal(placed, [np.asarray(embedding)] * 2)


@pytest.fixture
def folder(texts, tmp_path):
  """A folder that a test may change."""
  return pathlib.Path(shutil.copytree(texts, tmp_path / "changed"))


def test_one_share_meets_what_is_not_finite(folder):
  """Before anything is placed, and in one of three processes."""
  name = "model.layers.1.mlp.up_proj.weight"
  tensors = safetensors_numpy.load_file(folder / "model.safetensors")
  tensors[name] = np.array(tensors[name])
  tensors[name][3, 2] = np.inf
  safetensors_numpy.save_file(tensors, folder / "model.safetensors")
  params = pretrained.open_model(str(folder)).params
  met = []
  for own in range(3):
    try:
      pretrained.check_finite(params, own, 3)
    except pretrained.ModelFileError as error:
      assert f"tensor {name} is not finite" in str(error)
      met.append(own)
  assert len(met) == 1
  with pytest.raises(pretrained.ModelFileError, match="up_proj"):
    pretrained.load(str(folder))


def test_bfloat16_and_other_types(folder):
  tensors = safetensors_numpy.load_file(folder / "model.safetensors")
  half = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
  safetensors_numpy.save_file(half, folder / "model.safetensors")
  found = pretrained.load(str(folder)).params["params"]["embed"]["embedding"]
  expected = half["model.embed_tokens.weight"].astype(np.float32)
  np.testing.assert_array_equal(found, expected)
  buffer = {"model.rotary_emb.inv_freq": np.ones(2, np.int64)}
  safetensors_numpy.save_file(tensors | buffer, folder / "model.safetensors")
  pretrained.load(str(folder))
  name = "model.norm.weight"
  odd = tensors | {name: tensors[name].astype(np.int8)}
  safetensors_numpy.save_file(odd, folder / "model.safetensors")
  with pytest.raises(pretrained.ModelFileError, match=f"{name} is I8; only"):
    pretrained.load(str(folder))


def test_a_large_model_is_written_as_several_files(
  texts, tmp_path, monkeypatch
):
  own = pretrained.load(str(texts))
  total = 4 * sum(leaf.size for leaf in jax.tree.leaves(own.params))
  module = sys.modules["lco_jax.pretrained.export"]  # Not the function.
  monkeypatch.setattr(module, "_FILE_BYTES", total // 3)
  folder = tmp_path / "model"
  pretrained.export(own, own.params, folder)
  files = sorted(path.name for path in folder.glob("*.safetensors"))
  count = len(files)
  assert count > 2
  assert files == [
    f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)
  ]
  sizes = [(folder / name).stat().st_size for name in files]
  assert max(sizes) < total // 3 + 10_000
  index = json.loads((folder / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == total
  again = pretrained.load(str(folder))
  jax.tree.map(np.testing.assert_array_equal, again.params, own.params)
