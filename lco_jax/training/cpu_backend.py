"""Settings of the CPU backend: cores, memory and compiler options.

By default, the CPU is one device whose operations share a thread pool. For
control's small networks, passing work between threads costs more than it saves;
one device with a single thread per seed uses the cores better.
"""

import ctypes
import functools
import os

import jax
from absl import logging

_LEVEL = "xla_backend_optimization_level"
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
# Options of glibc's mallopt, by their numbers in malloc.h.
_MALLOC_OPTIONS = {
  -8: 1,  # M_ARENA_MAX: one arena, because others cannot hold large blocks.
  -4: 0,  # M_MMAP_MAX: never allocate a block by mmap.
  -1: -1,  # M_TRIM_THRESHOLD: never return memory to the system.
}


def divide_cores(*shares: int, warn: bool = True) -> None:
  """Divides the CPU backend into single-thread devices that share the work.

  Makes as many devices, up to the number of cores, as divide the work evenly.
  Call it before JAX starts its backends; later it can change nothing. The
  user's NPROC (threads) and number of host devices in XLA_FLAGS take
  precedence. Accelerators are not affected.

  Args:
    *shares: numbers of which the number of devices must divide at least one,
      such as the number of parallel seeds.
    warn: whether to log a warning if JAX has started its backends.
  """
  os.environ.setdefault("NPROC", "1")
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  # Only Linux reports the cores that a process may use.
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count()
  try:
    jax.config.update(
      "jax_num_cpu_devices",
      max(n for n in range(1, cores + 1) if any(s % n == 0 for s in shares)),
    )
  except RuntimeError:
    if not warn:
      return
    logging.warning(
      "JAX has started before its cores could be divided, so the run may be"
      " slower; a plug-in should not compute with JAX, or import gymnax, when"
      " it is imported"
    )


def keep_memory() -> None:
  """Makes glibc reuse freed memory instead of returning it to the system.

  Otherwise every update requests gigabytes from the system again, page by page:
  a quarter of the time for a model of a hundred million parameters. Call it
  before JAX starts its threads. It does nothing if MALLOC_... or GLIBC_TUNABLES
  is set in the environment, or with another C library.
  """
  if any(k.startswith("MALLOC_") or k == "GLIBC_TUNABLES" for k in os.environ):
    return
  libc = ctypes.CDLL(None)
  if hasattr(libc, "gnu_get_libc_version"):
    for option, value in _MALLOC_OPTIONS.items():
      libc.mallopt(option, value)


def compiler_options(
  once: bool, long_reductions: bool = False
) -> dict[str, int | str]:
  """Chooses compiler options for a program on the default backend.

  Compilation takes most of a short run. On CPU, LLVM's higher optimisation
  levels compile for half as long again and made no measured program faster.
  Sums over thousands of rows, as in a transformer's backward pass, run twice as
  fast in XLA's own code as in the library that it calls; short sums do not.

  Args:
    once: whether the program will be called only once.
    long_reductions: whether it sums over thousands of rows.

  Returns:
    Options for `jax.stages.Lowered.compile`; empty on other backends, and
    without the options that XLA_FLAGS sets.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if jax.default_backend() != "cpu":
    return {}
  options = {}
  if _LEVEL not in given:
    options[_LEVEL] = 0 if once else 1
  if long_reductions and _LIBRARY not in given:
    options |= _exclude_library_reductions()
  return options


@functools.cache
def _exclude_library_reductions() -> dict[str, str]:
  """Returns the option that keeps reductions in XLA, if jaxlib supports it."""
  options = {_LIBRARY: "LIBRARY_FUSION_TYPE_DOT"}
  try:
    jax.jit(lambda x: x).lower(0.0).compile(options)
  except (jax.errors.JaxRuntimeError, ValueError):
    return {}
  return options
