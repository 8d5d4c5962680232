"""Scripts as a user runs them, each in a process of its own.

Processes are forked from one that has imported the libraries and done nothing
else, so that a script starts in milliseconds.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
_LIBRARIES = [
  "experiments.control_run",
  "experiments.language_run",
  "experiments.stage",
  "lco_jax.reporting.curves",
  "orbax.checkpoint",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_LIBRARIES)


@dataclasses.dataclass(frozen=True)
class Done:
  """What a script left.

  Attributes:
    returncode: its exit status.
    stdout: what it said.
    stderr: what it complained of.
  """

  returncode: int
  stdout: str
  stderr: str

  @property
  def complaint(self) -> str:
    """The only line on standard error, which names an error."""
    (line,) = self.stderr.strip().splitlines()
    assert line.startswith("error: "), line
    return line


def run(module: str, *flags: str, devices: int = 1, timeout: int = 300) -> Done:
  """Runs experiments.MODULE with flags, on so many CPU devices."""
  with tempfile.TemporaryDirectory() as directory:
    out, err = (os.path.join(directory, name) for name in ("out", "err"))
    process = _CONTEXT.Process(
      target=_main, args=(module, flags, devices, out, err)
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
      process.kill()
      raise TimeoutError(f"{module} {flags} took more than {timeout} s")
    texts = [pathlib.Path(path).read_text() for path in (out, err)]
    return Done(process.exitcode, *texts)


def _main(module, flags, devices, out, err):
  for path, descriptor in ((out, 1), (err, 2)):
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, descriptor)
  os.chdir(ROOT)
  os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={devices}"
    " --xla_backend_optimization_level=0"
  )
  sys.argv = [module, *flags]
  runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
