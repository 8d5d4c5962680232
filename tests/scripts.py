"""Scripts as a user runs them, each in a process of its own.

Processes are forked from one that has imported the libraries and done nothing
else, so that a script starts in milliseconds.
"""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import runpy
import signal
import socket
import sys
import tempfile
import threading

from tests import compiler

ROOT = pathlib.Path(__file__).parent.parent
_LIBRARIES = [
  "lco_jax.trainers.control",
  "lco_jax.trainers.language_training",
  "lco_jax.trainers.llm_training",
  "experiments.common.training_run",
  "lco_jax.runs.distributed",
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


class Process:
  """A script that runs, or has run; starts with the object."""

  def __init__(
    self,
    module: str,
    *flags: str,
    devices: int = 1,
    file_limit: int | None = None,
    path: str | None = None,
  ):
    """Starts experiments.MODULE.

    Args:
      module: its name.
      *flags: of its command line.
      devices: how many CPU devices it has.
      file_limit: bytes that no file may grow beyond; None for any.
      path: folder whose packages come before others; None for none.
    """
    self.name = f"{module} {' '.join(flags)}"
    self._directory = tempfile.TemporaryDirectory()
    paths = [
      os.path.join(self._directory.name, name) for name in ("out", "err")
    ]
    self._texts = [pathlib.Path(path) for path in paths]
    self._process = _CONTEXT.Process(
      target=_main,
      args=(module, flags, devices, file_limit, path, *paths),
      daemon=True,  # It ends with the tests, whatever they do.
    )
    self._done = None
    self._process.start()

  def poll(self) -> int | None:
    """Its exit status, or None while it runs."""
    return self._process.exitcode

  def send_signal(self, number: int) -> None:
    """Sends it a signal, if it still runs."""
    if self.poll() is None:
      os.kill(self._process.pid, number)

  def finish(self, timeout: float = 300) -> Done:
    """Waits for its end.

    Raises:
      TimeoutError: if it takes longer, in seconds; it is killed then.
    """
    self._process.join(timeout)
    if self.poll() is None:
      said = self._texts[1].read_text()[-1000:]
      self.end()
      raise TimeoutError(f"{self.name} took more than {timeout} s: {said}")
    if self._done is None:
      texts = [path.read_text() for path in self._texts]
      self._done = Done(self.poll(), *texts)
      self._directory.cleanup()
    return self._done

  def end(self) -> None:
    """Kills it, if it still runs."""
    self._process.kill()
    self._process.join()
    self._directory.cleanup()


def run(module: str, *flags: str, timeout: int = 300, **options) -> Done:
  """Runs experiments.MODULE with flags; options as of `Process`."""
  return Process(module, *flags, **options).finish(timeout)


def free_address() -> str:
  """An address of this machine at which nothing listens."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return f"127.0.0.1:{server.getsockname()[1]}"


def overridden(*flags: str) -> list[str]:
  """Flags of which the last one of a name counts; tuples would add up."""
  return list({flag.partition("=")[0]: flag for flag in flags}.values())


def _end_with_tests():
  """Waits for the end of the tests, and ends this process."""
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os.kill(os.getpid(), signal.SIGKILL)


def _main(module, flags, devices, file_limit, path, out, err):
  # Tests that are killed cannot end it.
  threading.Thread(target=_end_with_tests, daemon=True).start()
  for name, descriptor in ((out, 1), (err, 2)):
    file = os.open(name, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, descriptor)
  os.chdir(ROOT)
  os.environ["XLA_FLAGS"] = compiler.flags(devices)
  # It is one so that it ends with the tests, but may start processes itself.
  multiprocessing.current_process()._config["daemon"] = False
  if path is not None:
    sys.path.insert(0, path)
    os.environ["PYTHONPATH"] = path  # Of processes that the script starts.
  if file_limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
  sys.argv = [module, *flags]
  runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
