"""A harness stricter than users' code: virtual devices, no implicit casts."""

import ctypes
import gc
import os
import pathlib
import resource
import shutil
import tempfile

from tests import compiler

# Before jax starts. Data parallelism needs devices.
os.environ["XLA_FLAGS"] = compiler.flags(devices=8)
# They are CPU devices, whatever else the machine has.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests, their workers and the scripts that they start share what they compile.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
  tempfile.gettempdir(),
  "lco_jax_tests_"
  + os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# An entry that another process is writing cannot be read: jax compiles again.
os.environ["PYTHONWARNINGS"] = (
  "ignore:Error reading persistent compilation cache entry"
)

import jax
import pytest

# glibc's alone; None where there is none.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
_MANY_BYTES = 1.25 * 2**30


def pytest_configure(config):
  """What scripts ignore by their environment, pytest ignores too."""
  config.addinivalue_line("filterwarnings", os.environ["PYTHONWARNINGS"])


def pytest_sessionfinish(session):
  """Removes the cache once, when all workers are done."""
  if not hasattr(session.config, "workerinput"):
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True)
def strict_arrays(request):
  """Ranks and dtypes must be spelled out, except where other packages run."""
  if "third_party" in request.keywords:
    yield
    return
  with (
    jax.numpy_rank_promotion("raise"),
    jax.numpy_dtype_promotion("strict"),
  ):
    yield


@pytest.fixture(autouse=True)
def bounded_memory():
  """Drops compiled programs when they have piled up to gigabytes."""
  yield
  if _TRIM is not None and _resident_bytes() > _MANY_BYTES:
    jax.clear_caches()
    gc.collect()
    _TRIM(0)  # Freed memory stays malloc's until it is asked for.


def _resident_bytes() -> int:
  pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * resource.getpagesize()


@pytest.fixture
def float64():
  """Runs a test in double precision."""
  with jax.enable_x64(True):
    yield
