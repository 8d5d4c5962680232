"""How the CPU backend uses a machine's cores, and its memory.

By default it is one device whose operations share a pool of threads. For
control's small networks handing work from thread to thread costs more than it
saves; seeds on devices of their own, one thread each, use the cores better.
"""

import ctypes
import functools
import os

import jax

_LEVEL = "xla_backend_optimization_level"
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
# Options of glibc's mallopt, by the numbers in its malloc.h.
_KEEPING = {
  -8: 1,  # M_ARENA_MAX: all threads share one, as others hold no large blocks.
  -4: 0,  # M_MMAP_MAX: no block comes from the system on its own.
  -1: -1,  # M_TRIM_THRESHOLD: nothing is given back.
}


def divide_cores(*shares: int) -> None:
  """Makes the CPU backend a device of one thread for each share of the work.

  As many devices as cores, where they divide the work evenly. Call it before
  JAX starts its backends. What the user has set in the environment stays: NPROC
  (threads), and the number of host devices in XLA_FLAGS. Accelerators are not
  touched.

  Args:
    *shares: ways in which the work can be divided: numbers that the number of
      devices may divide, such as that of the seeds side by side.
  """
  os.environ.setdefault("NPROC", "1")
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  # Only Linux knows which cores a process may use.
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count()
  jax.config.update(
    "jax_num_cpu_devices",
    max(n for n in range(1, cores + 1) if any(s % n == 0 for s in shares)),
  )


def keep_memory() -> None:
  """Makes the C library keep the memory that is freed, for the next buffers.

  Else gigabytes that an update needs come from the system anew each time, page
  by page: a quarter of the time where a model has a hundred million parameters.
  Call it before JAX starts its threads. What the user has set in the
  environment stays (MALLOC_..., GLIBC_TUNABLES); other C libraries are not
  touched.
  """
  if any(k.startswith("MALLOC_") or k == "GLIBC_TUNABLES" for k in os.environ):
    return
  libc = ctypes.CDLL(None)
  if hasattr(libc, "gnu_get_libc_version"):
    for option, value in _KEEPING.items():
      libc.mallopt(option, value)


def compiler_options(
  once: bool, long_reductions: bool = False
) -> dict[str, int | str]:
  """Options with which to compile a program for the default backend.

  Compiling is most of a short run. On CPU, LLVM's higher levels take half as
  long again and make no program here faster that was measured. Sums over
  thousands of rows, as a transformer's backward pass has, are twice as fast in
  XLA's own code as in the library that it takes for them; short ones are not.

  Args:
    once: whether the program will be called only once.
    long_reductions: whether it sums over thousands of rows.

  Returns:
    Options for `jax.stages.Lowered.compile`; none where there is nothing to
    gain, or where XLA_FLAGS says otherwise.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if jax.default_backend() != "cpu":
    return {}
  options = {}
  if _LEVEL not in given:
    options[_LEVEL] = 0 if once else 1
  if long_reductions and _LIBRARY not in given:
    options |= _products_alone()
  return options


@functools.cache
def _products_alone() -> dict[str, str]:
  """The option that leaves reductions to XLA, where this jaxlib has it."""
  options = {_LIBRARY: "LIBRARY_FUSION_TYPE_DOT"}
  try:
    jax.jit(lambda x: x).lower(0.0).compile(options)
  except (jax.errors.JaxRuntimeError, ValueError):
    return {}
  return options
