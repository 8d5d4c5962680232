"""GGUF models that are divided over several files, as gguf-split does.

The files are called NAME-00001-of-00003.gguf and so on. The first one has the
metadata, and each says which one it is.
"""

import pathlib
import re

from lco_jax.pretrained import gguf_file, model_file

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def read(path: pathlib.Path) -> gguf_file.GgufFile:
  """Reads a GGUF file, and the others of its model if there are more.

  Args:
    path: of the file, or of any of the model's files.

  Returns:
    The model as one file; its path is that of the first.

  Raises:
    ModelFileError: if a file is missing, malformed, or not of this model.
  """
  asked = gguf_file.read(path)
  count = asked.metadata.get(_COUNT, 0)
  if not isinstance(count, int) or count < 0:
    raise model_file.ModelFileError(
      path, f"{_COUNT} {count!r} is not a number of files"
    )
  if count < 2:  # gguf-split writes 0 into files that it has merged.
    return asked
  named = _NAME.fullmatch(path.name)
  if named is None or int(named[3]) != count:
    raise model_file.ModelFileError(
      path,
      f"is one of {count} files of a model, which must be called"
      f" NAME-00001-of-{count:05}.gguf and so on",
    )
  files = [
    gguf_file.read(path.with_name(f"{named[1]}-{place:05}-of-{named[3]}.gguf"))
    for place in range(1, count + 1)
  ]
  tensors = {}
  for number, file in enumerate(files):
    found = file.metadata.get(_NUMBER), file.metadata.get(_COUNT)
    if found != (number, count):
      raise model_file.ModelFileError(
        file.path,
        f"{_NUMBER} and {_COUNT} must be {number} and {count}, got"
        f" {found[0]!r} and {found[1]!r}",
      )
    for name, tensor in file.tensors.items():
      if name in tensors:
        raise model_file.ModelFileError(
          file.path, f"tensor {name!r} is in another file of the model, too"
        )
      tensors[name] = tensor
  first = files[0]
  expected = first.metadata.get(_TENSORS, len(tensors))
  if len(tensors) != expected:
    raise model_file.ModelFileError(
      first.path,
      f"{_TENSORS} is {expected!r}, but the files have {len(tensors)} tensors",
    )
  return first._replace(tensors=tensors)
