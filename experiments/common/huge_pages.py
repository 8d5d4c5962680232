"""Memory in huge pages, which a script has to ask for before it starts."""

import contextlib
import os
import pathlib
import platform
import sys

from experiments.common import help as help_lib

# Where Linux says whether programs may ask for huge pages.
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_NAME, _VALUE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_SINCE = (2, 35)  # The first glibc that knows the tunable.


def restart() -> None:
  """Starts the script anew with huge pages, where it can have them.

  Gigabytes that come page by page take seconds of each update, and memory that
  is kept instead (`cpu_backend.keep_memory`) breaks into pieces. A script calls
  it first, before it reads its flags. It returns if there are no huge pages, if
  MALLOC_... or GLIBC_TUNABLES is set in the environment, if the script was not
  started by `python -m`, and for --help. Processes that the script starts have
  huge pages, too.
  """
  if help_lib.is_requested(sys.argv) or not (_are_offered() and _is_module()):
    return
  if any(name.startswith("MALLOC_") or name == _NAME for name in os.environ):
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os.environ[_NAME] = _VALUE
  with contextlib.suppress(OSError):  # It goes on without them.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  del os.environ[_NAME]


def _are_offered() -> bool:
  """Whether the C library and the system have huge pages to ask for."""
  name, version = platform.libc_ver()
  if name != "glibc" or tuple(map(int, version.split(".")[:2])) < _SINCE:
    return False
  try:
    return "[never]" not in _MODE.read_text()
  except OSError:  # Linux without them.
    return False


def _is_module() -> bool:
  """Whether this process was started as `python -m` of the main module."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is None or "-m" not in sys.orig_argv or not sys.executable:
    return False
  after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
  return after[:1] == [spec.name]
