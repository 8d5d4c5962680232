"""GGUF models over several files, divided by the `gguf` package's writer."""

import functools
import shutil

import gguf
import jax
import numpy as np
import pytest

from lco_jax import pretrained
from tests import tiny_model

_TENSORS = 6  # Of a file.
_WRITER = gguf.GGUFWriter


def _divide(path, monkeypatch, **options):
  """Writes the tiny model over files; returns their paths."""
  with monkeypatch.context() as patch:
    patch.setattr(gguf, "GGUFWriter", functools.partial(_WRITER, **options))
    tiny_model.write_gguf(path, tiny_model.weights())
  return sorted(path.parent.glob(f"{path.stem}-*.gguf"))


@pytest.fixture
def files(tmp_path, monkeypatch):
  return _divide(tmp_path / "m.gguf", monkeypatch, split_max_tensors=_TENSORS)


@pytest.mark.parametrize("small_first", [False, True])
def test_any_of_the_files_is_the_whole_model(
  tmp_path, monkeypatch, small_first
):
  tiny_model.write_gguf(tmp_path / "whole.gguf", tiny_model.weights())
  whole = pretrained.load(str(tmp_path / "whole.gguf"))
  paths = _divide(
    tmp_path / "m.gguf",
    monkeypatch,
    split_max_tensors=_TENSORS,
    small_first_shard=small_first,
  )
  count = -(-len(tiny_model.weights()) // _TENSORS) + small_first
  assert len(paths) == count > 2
  for path in (paths[0], paths[-1]):
    found = pretrained.load(str(path))
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
    assert found.config == whole.config
    assert found.config_json == whole.config_json
    assert found.tokenizer.encode("hello") == whole.tokenizer.encode("hello")
    assert pretrained.read_config(str(path)) == whole.config


def test_a_file_that_gguf_split_has_merged(tmp_path, monkeypatch):
  """It says that it is one of 0 files."""
  path = tmp_path / "m.gguf"
  write = _WRITER.write_header_to_file

  def write_more(self, *arguments):
    self.add_uint16("split.count", 0)
    write(self, *arguments)

  monkeypatch.setattr(_WRITER, "write_header_to_file", write_more)
  tiny_model.write_gguf(path, tiny_model.weights())
  assert pretrained.load(str(path)).context_length == 128


def test_a_missing_file_is_named(files):
  files[1].unlink()
  with pytest.raises(pretrained.ModelFileError, match="m-00002-of-"):
    pretrained.load(str(files[0]))


def test_a_file_of_another_model_is_named(files):
  shutil.copy(files[0], files[1])
  with pytest.raises(pretrained.ModelFileError, match=r"00002-of.*split\.no"):
    pretrained.load(str(files[0]))


def test_files_must_keep_their_names(files):
  other = files[0].with_name("model.gguf")
  files[0].rename(other)
  with pytest.raises(pretrained.ModelFileError, match="model.gguf: is one of"):
    pretrained.load(str(other))


@pytest.mark.parametrize(
  ("key", "kind", "value", "says"),
  [
    (b"split.count", 3, b"\xff\xff", "-1 is not a number of files"),
    (
      b"split.tensors.count",
      5,
      b"\x03\0\0\0",
      "is 3, but the files have",
    ),
  ],
)
def test_wrong_metadata(files, key, kind, value, says):
  """Kinds are GGUF's numbers of types: 3 for int16, 5 for int32."""
  content = bytearray(files[0].read_bytes())
  at = content.index(key) + len(key)
  written = bytes([kind, 0, 0, 0]) + value
  content[at : at + len(written)] = written
  files[0].write_bytes(content)
  with pytest.raises(pretrained.ModelFileError, match=says):
    pretrained.load(str(files[0]))


def test_a_tensor_in_two_files(files):
  for path in files:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.attn_norm", b"blk.0.attn_norm"))
  with pytest.raises(pretrained.ModelFileError, match="in another file"):
    pretrained.load(str(files[0]))
