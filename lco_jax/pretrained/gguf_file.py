"""Reader of GGUF, llama.cpp's format: metadata, then quantised tensors.

Files are not trusted, so this module parses the header itself and checks counts
and offsets against the file size before using them. The `gguf` package decodes
the quantised blocks.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import mmap
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gguf import constants, quants

from lco_jax.pretrained import model_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
  0: "<u1",
  1: "<i1",
  2: "<u2",
  3: "<i2",
  4: "<u4",
  5: "<i4",
  6: "<f4",
  7: "<?",
  10: "<u8",
  11: "<i8",
  12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


class GgufFile(NamedTuple):
  """Content of a GGUF file.

  Attributes:
    path: path of the file.
    metadata: {key: number, bool, str, array of numbers or list of str}.
    tensors: {name: Tensor}; shapes list the outermost axis first.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, model_file.Tensor]


def read(path: pathlib.Path, *more: pathlib.Path) -> GgufFile:
  """Reads a file's header; `Tensor.read` later reads a tensor.

  Args:
    path: of the file.
    *more: files that follow it, if it has been cut into parts; they are held in
      memory.

  Raises:
    ModelFileError: if the file is not a complete, well-formed GGUF file.
  """
  try:
    if more:
      data = b"".join(part.read_bytes() for part in (path, *more))
    else:
      with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except (OSError, ValueError) as error:  # ValueError: an empty file.
    raise model_file.ModelFileError(path, f"cannot be read: {error}") from error
  return _Header(path, data).parse()


class _Header:
  """Parser of a file's header."""

  def __init__(self, path: pathlib.Path, data: mmap.mmap | bytes):
    self._path, self._data, self._at = path, data, 0

  def parse(self) -> GgufFile:
    if self._take(4) != _MAGIC:
      raise self._error("not a GGUF file")
    version = self._read_number("<u4")
    if version not in _VERSIONS:
      raise self._error(f"GGUF version {version} is not among {_VERSIONS}")
    num_tensors, num_keys = self._read_number("<u8"), self._read_number("<u8")
    metadata = {}
    for _ in range(num_keys):
      key = self._read_string()
      if key in metadata:
        raise self._error(f"key {key!r} occurs twice")
      metadata[key] = self._read_value(self._read_number("<u4"))
    described = {}
    for _ in range(num_tensors):
      name = self._read_string()
      if name in described:
        raise self._error(f"tensor {name!r} occurs twice")
      described[name] = self._read_description(name)
    return GgufFile(
      self._path, metadata, self._list_tensors(metadata, described)
    )

  def _error(self, problem: str) -> model_file.ModelFileError:
    return model_file.ModelFileError(self._path, problem)

  def _take(self, size: int) -> bytes:
    if size > len(self._data) - self._at:
      raise self._error(f"ends in its header, at byte {len(self._data)}")
    self._at += size
    return self._data[self._at - size : self._at]

  def _read_number(self, dtype: str) -> Any:
    dtype = np.dtype(dtype)
    return np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()

  def _read_string(self) -> str:
    (size,) = struct.unpack("<Q", self._take(8))
    try:
      return str(self._take(size), "utf-8")
    except UnicodeDecodeError as error:
      raise self._error(
        f"a string in the header is not UTF-8: {error}"
      ) from None

  def _read_value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self._read_number(_SCALARS[kind])
    if kind == _STRING:
      return self._read_string()
    if kind != _ARRAY:
      raise self._error(f"metadata of unknown type {kind}")
    kind, count = self._read_number("<u4"), self._read_number("<u8")
    if kind in _SCALARS:
      dtype = np.dtype(_SCALARS[kind])
      return np.frombuffer(self._take(count * dtype.itemsize), dtype)
    if kind == _STRING:
      # A string takes at least 8 bytes, so the file size bounds the list.
      return [self._read_string() for _ in range(count)]
    raise self._error(f"metadata with arrays of type {kind} is not supported")

  def _read_description(self, name: str) -> tuple[tuple, Any, tuple, int]:
    """Reads (shape, type, shape in bytes, offset) of a tensor."""
    rank = self._read_number("<u4")
    if not 1 <= rank <= _MAX_DIMENSIONS:
      raise self._error(f"tensor {name!r} has {rank} dimensions")
    # The file lists the innermost axis first.
    shape = tuple(self._read_number("<u8") for _ in range(rank))[::-1]
    number = self._read_number("<u4")
    try:
      kind = constants.GGMLQuantizationType(number)
      byte_shape = quants.quant_shape_to_byte_shape(shape, kind)
    except (ValueError, KeyError) as error:
      raise self._error(f"tensor {name!r}: {error}") from None
    return shape, kind, byte_shape, self._read_number("<u8")

  def _list_tensors(self, metadata, described) -> dict[str, model_file.Tensor]:
    """Lists the tensors; all must lie inside the file, without overlap."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
      raise self._error(
        f"general.alignment {alignment!r} is not a multiple of 8"
      )
    begin = -(-self._at // alignment) * alignment
    tensors, used = {}, 0
    by_place = sorted(described.items(), key=lambda item: item[1][3])
    for name, (shape, kind, byte_shape, offset) in by_place:
      size = math.prod(byte_shape)
      if offset % alignment or offset < used:
        raise self._error(f"tensor {name!r} has a wrong offset, {offset}")
      used = offset + size
      if begin + used > len(self._data):
        raise self._error(
          f"file ends at byte {len(self._data)}, but tensor {name!r} ends at"
          f" byte {begin + used}"
        )
      tensors[name] = self._defer_tensor(
        name, shape, kind, byte_shape, begin + offset
      )
    return tensors

  def _defer_tensor(
    self, name, shape, kind, byte_shape, at
  ) -> model_file.Tensor:
    path = self._path
    # Parts of a file that has been cut up are in memory, joined.
    joined = self._data if isinstance(self._data, bytes) else None

    def read_part(index):
      if joined is None:
        data = model_file.map_array(path, np.uint8, at, byte_shape)
      else:
        size = math.prod(byte_shape)
        data = np.frombuffer(joined, np.uint8, size, at).reshape(byte_shape)
      # Blocks of numbers lie along the last axis, which is decoded whole.
      *before, last = index
      try:
        values = quants.dequantize(data[tuple(before)], kind)
      except NotImplementedError as error:
        raise model_file.ModelFileError(
          path, f"tensor {name!r}: {error}"
        ) from None
      return np.asarray(values, np.float32)[..., last]

    return model_file.Tensor(shape, read_part)
