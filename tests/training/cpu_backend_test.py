"""Tests of how the CPU backend uses a machine, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

# A thread, as the backend's are, takes and frees 64 MiB four times; how many
# pages the system gave after the first.
_TAKE_AND_FREE = """
import ctypes, resource, threading
from lco_jax.training import cpu_backend

cpu_backend.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
counts = []

def take_and_free():
  for _ in range(4):
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

thread = threading.Thread(target=take_and_free)
thread.start()
thread.join()
print(counts[-1] - counts[0])
"""


def _pages_taken():
  done = subprocess.run(
    [sys.executable, "-c", _TAKE_AND_FREE],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  return int(done.stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="needs the GNU C library"
)
class TestKeepMemory:
  def test_a_threads_freed_blocks_are_taken_again(self, monkeypatch):
    for name in list(os.environ):
      if name.startswith(("MALLOC_", "GLIBC_TUNABLES")):
        monkeypatch.delenv(name)
    assert _pages_taken() < 20

  def test_what_the_user_set_stays(self, monkeypatch):
    # 32 pages are 64 MiB where the system's pages are huge.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert _pages_taken() >= 3 * 32
