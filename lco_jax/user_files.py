"""Python files that a user names: imported, identified, explained."""

import hashlib
import importlib.util
import pathlib
import sys
import traceback
from types import ModuleType


def import_file(path: pathlib.Path, name: str, setting: str) -> ModuleType:
  """Imports a Python file.

  Args:
    path: of the file.
    name: of the module in `sys.modules`.
    setting: that named the file, for errors.

  Raises:
    ValueError: if there is no such file, or it cannot be imported; with the
      line at fault.
  """
  if not path.is_file():
    raise ValueError(f"{setting}: no file {path}")
  path = path.resolve()
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:  # The user's code may raise any.
    del sys.modules[name]
    raise ValueError(f"{setting}: {describe_import(error, path)}") from error
  return module


def hash_file(path: str | pathlib.Path) -> str:
  """SHA-256 of a file's content, in hexadecimal digits."""
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def describe_import(error: BaseException, path: object = None) -> str:
  """Describes in one line, FILE:LINE: ..., why a file cannot be imported.

  Args:
    error: raised while a user's file was imported.
    path: of the file, whose own line is named; None for the last line.
  """
  kind = type(error).__name__
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}:{error.lineno}: {kind}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  own = [f for f in frames if path is None or f.filename == str(path)]
  place = f"{own[-1].filename}:{own[-1].lineno}" if own else f"{path}"
  return f"{place}: {kind}: {next(iter(str(error).splitlines()), '')}"
