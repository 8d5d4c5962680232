"""A harness stricter than users' code: virtual devices, no implicit casts."""

import os

# Before jax starts. Data parallelism needs devices; and tests compile more than
# they run, so the compiler need not try hard.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import jax
import pytest


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


@pytest.fixture
def float64():
  """Runs a test in double precision."""
  with jax.enable_x64(True):
    yield
