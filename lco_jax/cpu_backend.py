"""How the CPU backend uses a machine's cores.

By default it is one device whose operations share a pool of threads. For
control's small networks handing work from thread to thread costs more than it
saves; seeds on devices of their own, one thread each, use the cores better.
"""

import os

import jax


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
  cores = len(os.sched_getaffinity(0))
  jax.config.update(
    "jax_num_cpu_devices",
    max(n for n in range(1, cores + 1) if num_seeds % n == 0),
  )
