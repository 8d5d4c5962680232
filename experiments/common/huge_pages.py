"""Memory in huge pages, which a script has to ask for before it starts."""

import os
import pathlib
import platform
import sys

# Where Linux says whether programs may ask for huge pages.
_MODE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb=1"
_SINCE = (2, 35)  # The first glibc that knows the tunable.


def restart() -> None:
  """Starts the script anew with huge pages, where it can have them.

  Gigabytes that come page by page take seconds of each update, and memory that
  is kept instead (`cpu_backend.keep_memory`) breaks into pieces. Call it before
  anything is opened or written. It does nothing if the user has set MALLOC_...
  or GLIBC_TUNABLES in the environment, or in a program that is no
  `python -m experiments.NAME`.
  """
  if not (_are_offered() and _is_own_script()):
    return
  if any(k.startswith("MALLOC_") or k == "GLIBC_TUNABLES" for k in os.environ):
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os.environ["GLIBC_TUNABLES"] = _TUNABLE
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _are_offered() -> bool:
  """Whether the C library and the system have huge pages to ask for."""
  name, version = platform.libc_ver()
  if name != "glibc" or tuple(map(int, version.split(".")[:2])) < _SINCE:
    return False
  try:
    return "[never]" not in _MODE.read_text()
  except OSError:  # Linux without them.
    return False


def _is_own_script() -> bool:
  """Whether this process was started as `python -m` of the main module."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is None or "-m" not in sys.orig_argv:
    return False
  after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
  return after[:1] == [spec.name]
