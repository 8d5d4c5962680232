"""How the CPU backend uses a machine's cores.

By default it is one device whose operations share a pool of threads. For
control's small networks handing work from thread to thread costs more than it
saves; seeds on devices of their own, one thread each, use the cores better.
"""

import os

import jax

_LEVEL = "xla_backend_optimization_level"


def divide_cores(num_seeds: int) -> None:
  """Makes the CPU backend a device of one thread for each share of the seeds.

  As many devices as cores, where they divide the seeds. Call it before JAX
  starts its backends. What the user has set in the environment stays: NPROC
  (threads), and the number of host devices in XLA_FLAGS. Accelerators are not
  touched.

  Args:
    num_seeds: seeds that will run side by side.
  """
  os.environ.setdefault("NPROC", "1")
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  # Only Linux knows which cores a process may use.
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count()
  jax.config.update(
    "jax_num_cpu_devices",
    max(n for n in range(1, cores + 1) if num_seeds % n == 0),
  )


def compiler_options(once: bool) -> dict[str, int]:
  """Options with which to compile a program for the default backend.

  Compiling is most of a short run. On CPU, LLVM's higher levels take half as
  long again and make no program here faster that was measured.

  Args:
    once: whether the program will be called only once.

  Returns:
    Options for `jax.stages.Lowered.compile`; none where there is nothing to
    gain, or where XLA_FLAGS says otherwise.
  """
  if jax.default_backend() != "cpu" or _LEVEL in os.environ.get(
    "XLA_FLAGS", ""
  ):
    return {}
  return {_LEVEL: 0 if once else 1}
