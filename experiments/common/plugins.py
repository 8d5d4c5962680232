"""Loading of plug-ins: files with environments, tasks, losses and rewards.

A plug-in registers what it brings when it is imported, see
`lco_jax.register_environment`. Only files and modules that the command line
names are imported.
"""

import hashlib
import importlib
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

from lco_jax import user_files
from lco_jax.runs import run_directory

# {name: path or module as given on the command line} of those loaded.
_LOADED: dict[str, str] = {}
_HASHES: dict[str, str] = {}
# In sys.modules, before the name of a file: it must hide no other module.
_PREFIX = "lco_jax_plugin_"


def load(names: Sequence[str]) -> None:
  """Imports plug-ins, in this order; those that are loaded already stay.

  Args:
    names: paths that end with .py, or names of modules.

  Raises:
    ValueError: if one cannot be found or imported, with its file and line.
  """
  for given in names:
    is_file = given.endswith(".py")
    name = pathlib.Path(given).name if is_file else given
    if _LOADED.get(name, given) != given:
      raise ValueError(
        f"--plugins: {_LOADED[name]} and {given} have the same name"
      )
    if name in _LOADED:
      continue
    module = (
      user_files.import_file(
        pathlib.Path(given), _PREFIX + pathlib.Path(given).stem, "--plugins"
      )
      if is_file
      else _import(given)
    )
    _LOADED[name] = given
    _HASHES[name] = _hash_sources(module)


def make_flags() -> list[str]:
  """Makes the flag with which another script loads the same plug-ins."""
  return [f"--plugins={','.join(_LOADED.values())}"] if _LOADED else []


def settings() -> dict[str, dict[str, str]]:
  """The part of a run's settings that identifies its plug-ins.

  Returns:
    {"plugins": {name: SHA-256 of the source}}; empty without plug-ins.
  """
  return {"plugins": dict(_HASHES)} if _HASHES else {}


def check_run(where: pathlib.Path, may_add: bool = False) -> None:
  """Checks that a run goes on with the plug-ins that it began with.

  Args:
    where: directory of the run.
    may_add: whether others may be given as well.

  Raises:
    ValueError: naming the plug-in that is missing, new or changed; or if the
      run's configuration cannot be read.
  """
  stored = run_directory.read_config(where).get("plugins", {})
  for name in sorted(stored.keys() | (() if may_add else _HASHES.keys())):
    if name not in _HASHES:
      raise ValueError(f"--plugins: the run in {where} uses {name}; give it")
    if name not in stored:
      raise ValueError(
        f"--plugins: the run in {where} does not use {_LOADED[name]}; leave it"
        " out"
      )
    if stored[name] != _HASHES[name]:
      raise ValueError(
        f"--plugins: {_LOADED[name]} has changed since the run in {where}"
        " began; restore it, or begin a new run"
      )


def _import(name: str) -> ModuleType:
  if str(pathlib.Path.cwd()) not in sys.path:  # As `python -m` has it.
    sys.path.append(str(pathlib.Path.cwd()))
  try:
    module = importlib.import_module(name)
  except (Exception, SystemExit) as error:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
      raise ValueError(
        f"--plugins: no module {name}; the name of a file ends with .py"
      ) from error
    raise ValueError(
      f"--plugins: {user_files.describe_import(error)}"
    ) from error
  if getattr(module, "__file__", None) is None:
    raise ValueError(f"--plugins: {name} is no module with a file of its own")
  return module


def _hash_sources(module: ModuleType) -> str:
  """SHA-256 of a module's file; of all Python files of a package."""
  file = pathlib.Path(module.__file__)
  files = (
    sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
  )
  digest = hashlib.sha256()
  for own in files:
    digest.update(own.name.encode() + b"\0" + own.read_bytes() + b"\0")
  return digest.hexdigest()
