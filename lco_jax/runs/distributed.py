"""Joins this process to a job of several, whose devices run one program."""

import atexit
import contextlib
import dataclasses
import functools
import math
import os
import socket
import sys
from collections.abc import Iterator, Sequence

import jax

from lco_jax.runs import peers

# JAX ends a job, too, with a stack trace: it is to come second.
_BEHIND = 10
# Seconds in which a peer that is gone is found out; an error may be due to it.
_SETTLING = 2.0


@dataclasses.dataclass(frozen=True)
class Job:
  """A job of several processes, as one of them sees it.

  Attributes:
    coordinator: HOST:PORT at which process 0 listens, on that interface alone.
    num_processes: of the job.
    process_id: of this one, from 0.
    local_device_ids: accelerators of its own on a shared machine; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Sequence[int] | None = None

  def __post_init__(self):
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      raise ValueError(
        f"coordinator must be HOST:PORT, got {self.coordinator!r}"
      )
    if self.num_processes < 1:
      raise ValueError(f"num_processes must be ≥ 1, got {self.num_processes}")
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
        f"process_id must be in [0, {self.num_processes}),"
        f" got {self.process_id}"
      )

  @property
  def address(self) -> tuple[str, int]:
    """Host and port of the coordinator."""
    host, _, port = self.coordinator.rpartition(":")
    return host, int(port)


@contextlib.contextmanager
def joined(
  job: Job, settings: str, start_timeout: float, heartbeat_timeout: float
) -> Iterator[None]:
  """Waits for all processes of a job and makes their devices JAX's.

  Enter it before JAX starts its backends. If a process is lost from then on,
  this one ends, with a line on standard error and status 1. Leaving it waits
  for all others to leave. An exception that goes through it ends them all, but
  one with a true attribute `everywhere` is taken to be raised by all.

  Args:
    job: to join.
    settings: a text that must be the same in all processes.
    start_timeout: seconds to wait for them all.
    heartbeat_timeout: seconds of silence after which a process is lost.

  Raises:
    PeerError: if a process does not come.
    ValueError: if a number is out of range, or JAX has begun to compute.
  """
  for name, value in (
    ("start_timeout", start_timeout),
    ("heartbeat_timeout", heartbeat_timeout),
  ):
    if not 0 < value < math.inf:
      raise ValueError(f"{name} must be positive and finite, got {value}")
  host, _ = job.address
  if job.process_id == 0:
    links, notes = peers.call_roll(
      job.address,
      job.num_processes,
      start_timeout,
      settings,
      lambda: {"service": f"{host}:{_free_port(host)}"},
    )
  else:
    links, notes = peers.answer_roll(
      job.address, job.process_id, start_timeout, settings
    )
  watch = peers.Watch(
    links, heartbeat_timeout, functools.partial(_end, job.process_id)
  )
  try:
    _initialize(job, notes["service"], start_timeout, heartbeat_timeout)
    yield
  except BaseException as error:
    if not getattr(error, "everywhere", False):
      _fail(job, watch, error)
      raise
    _leave(watch)
    raise
  _leave(watch)


def _initialize(
  job: Job, service: str, start_timeout: float, heartbeat_timeout: float
) -> None:
  # JAX's own notice of SIGTERM would keep the signal from ending anything.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      service,
      job.num_processes,
      job.process_id,
      local_device_ids=job.local_device_ids,
      cluster_detection_method="deactivate",
      initialization_timeout=math.ceil(start_timeout),
      heartbeat_timeout_seconds=math.ceil(heartbeat_timeout) + _BEHIND,
      coordinator_bind_address=service,
    )
  except RuntimeError as error:
    if "must be called before" not in str(error):
      raise
    raise ValueError(
      "JAX has computed something before the processes were joined; a plug-in"
      " must leave computations to functions that are called later"
    ) from error


def _fail(job: Job, watch: peers.Watch, error: BaseException) -> None:
  """Tells the others of an error that this process is about to end with."""
  status = getattr(error, "status", None)
  if status is None:  # Not foreseen: it may be due to a peer that is gone.
    watch.settle(_SETTLING)
    status = 1
  line = next(iter(str(error).splitlines()), "") or type(error).__name__
  watch.fail(f"process {job.process_id}: {line}", status)
  # At the end of Python, JAX would wait for the others.
  atexit.register(_exit, status)


def _leave(watch: peers.Watch) -> None:
  watch.leave()
  jax.distributed.shutdown()


def _free_port(host: str) -> int:
  """A port of an interface that nobody listens at."""
  with socket.create_server((host, 0)) as server:
    return server.getsockname()[1]


def _end(process_id: int, why: str, status: int) -> None:
  """Ends the process, whatever its main thread is waiting for."""
  print(f"error: process {process_id} ends: {why}", file=sys.stderr)
  _exit(status)


def _exit(status: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
