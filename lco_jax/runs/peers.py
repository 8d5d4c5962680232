"""Mutual supervision of a job's processes, so none waits for a dead process.

Process 0 listens at the job's address. The others connect (the roll call) and
stay connected; both sides send heartbeats. A process is lost when its
connection breaks or it stays silent too long. Process 0 then names it to all
others, and every process exits with a one-line error. A failing process first
reports why.

JAX's own coordination also ends a job, but without naming a process that never
connected, and it aborts with a stack trace. This module does not depend on JAX.
"""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import connection

_BEAT = "beat"
_DONE = "done"
_MAX_MESSAGE = 2**12  # Bytes; short messages are sent in one piece.
_RETRY_SECONDS = 0.2  # Between two attempts to reach process 0.
_MESSAGE_SECONDS = 2  # Time limit for the rest of a message.

Links = dict[int, connection.Connection]


class PeerError(RuntimeError):
  """A process of the job did not connect or cannot be reached."""


def call_roll(
  address: tuple[str, int],
  num_processes: int,
  timeout: float,
  settings: str,
  notes: Callable[[], Mapping],
) -> tuple[Links, dict]:
  """Waits, in process 0, until all other processes have connected.

  Args:
    address: host and port to listen at, only on that host's interface.
    num_processes: number of processes of the job, including this one.
    timeout: seconds to wait.
    settings: a text that must be the same in all processes.
    notes: called when all have connected; returns plain values to send to all.

  Returns:
    (connections by process, the notes).

  Raises:
    PeerError: naming a process that did not connect in time or has other
      settings; the connected processes get the same error.
  """
  deadline = time.monotonic() + timeout
  links: Links = {}
  strangers: list[connection.Connection] = []
  problem = None
  try:
    with socket.create_server(address, backlog=num_processes) as server:
      while len(links) < num_processes - 1 and problem is None:
        left = deadline - time.monotonic()
        if left <= 0:
          missing = [p for p in range(1, num_processes) if p not in links]
          problem = (
            f"{_format_processes(missing)} did not connect to"
            f" {address[0]}:{address[1]} within {timeout:g} s"
          )
          break
        expected = [server, *strangers, *links.values()]
        for ready in connection.wait(expected, left):
          if ready is server:
            strangers.append(_make_link(server.accept()[0]))
            continue
          if ready not in strangers:  # It disconnected and may reconnect.
            links = {p: link for p, link in links.items() if link is not ready}
            continue
          process, theirs = _read_hello(ready)
          if process is None:  # Not a process of this job: ignore it.
            strangers.remove(ready)
            ready.close()
          elif process in links or not 0 < process < num_processes:
            problem = (
              f"process {process} connected twice, or the job has fewer"
              " processes"
            )
          elif theirs != settings:
            problem = f"process {process} was started with other settings"
          else:
            strangers.remove(ready)
            links[process] = ready
  except OSError as error:
    raise PeerError(
      f"process 0 cannot listen at {address[0]}:{address[1]}:"
      f" {error.strerror or error}"
    ) from error
  if problem is None:
    shared = dict(notes())
    _send(links.values(), json.dumps({"notes": shared}))
    _send(strangers, json.dumps({"refused": "the job is complete"}))
    return links, shared
  _send([*links.values(), *strangers], json.dumps({"refused": problem}))
  raise PeerError(problem)


def answer_roll(
  address: tuple[str, int], process_id: int, timeout: float, settings: str
) -> tuple[Links, dict]:
  """Connects another process to process 0 and waits for the rest.

  Args:
    address: address of process 0.
    process_id: number of this process.
    timeout: seconds to wait.
    settings: see `call_roll`.

  Returns:
    ({0: connection to process 0}, the notes).

  Raises:
    PeerError: if process 0 cannot be reached in time, or rejects the job.
  """
  deadline = time.monotonic() + timeout
  hello = json.dumps({"process": process_id, "settings": settings}).encode()
  problem = "it does not answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      link = _make_link(socket.create_connection(address, timeout=left))
      link.send_bytes(hello)
      # Process 0 waits as long as this process and may have started later.
      if link.poll(left + timeout):
        answer = json.loads(link.recv_bytes(_MAX_MESSAGE))
        if "refused" in answer:
          raise PeerError(answer["refused"])
        return {0: link}, answer["notes"]
    except (OSError, EOFError) as error:
      problem = getattr(error, "strerror", None) or "it closed the connection"
    except (ValueError, KeyError):
      problem = "another program answers there"
    time.sleep(_RETRY_SECONDS)
  raise PeerError(
    f"process 0 cannot be reached at {address[0]}:{address[1]}"
    f" within {timeout:g} s: {problem}"
  )


class Watch:
  """Sends heartbeats and ends this process when a peer is lost.

  Runs in its own thread, because the main thread may wait for the lost peer.
  """

  def __init__(self, links: Links, silence: float, end: Callable[[str], None]):
    """Starts the thread.

    Args:
      links: connections by process, from the roll call.
      silence: seconds without a message after which a process is lost.
      end: called once, in the thread, to end this process, with a line that
        names the lost or failed process, and the exit status.
    """
    self._links = links
    self._silence = silence
    self._end = end
    self._done = threading.Event()  # This process has reported its end.
    self._failed = threading.Event()  # This process has reported a failure.
    self._left = threading.Event()  # All processes are done.
    threading.Thread(target=self._run, daemon=True).start()

  def leave(self) -> None:
    """Reports a normal end; returns when every process has called it."""
    if 0 in self._links:  # Process 0 answers when all are done.
      _send(self._links.values(), _DONE)
    self._done.set()
    self._left.wait()

  def fail(self, why: str, status: int) -> None:
    """Tells the others to end, because this process is failing.

    Args:
      why: one line.
      status: exit status for the others.
    """
    self._failed.set()
    _send(self._links.values(), json.dumps({"why": why, "status": status}))

  def settle(self, seconds: float) -> None:
    """Gives the watch time to end this process if a lost peer is the cause.

    Args:
      seconds: time to wait.
    """
    time.sleep(seconds if self._links else 0)

  def _run(self):
    heard = dict.fromkeys(self._links, time.monotonic())
    interval = min(1.0, self._silence / 5)
    last_beat = time.monotonic()
    while heard or not self._done.is_set():
      if time.monotonic() - last_beat >= interval:
        last_beat = time.monotonic()
        _send(self._links.values(), _BEAT)
      if not heard:
        self._done.wait(interval)
      watched = {self._links[process]: process for process in heard}
      for link in connection.wait(list(watched), interval) if watched else []:
        process = watched[link]
        try:
          message = link.recv_bytes(_MAX_MESSAGE).decode()
        except (OSError, EOFError):
          return self._report(f"process {process} is gone")
        if message == _DONE:
          del heard[process]
        elif message == _BEAT:
          heard[process] = time.monotonic()
        else:
          return self._report(**json.loads(message))
      for process, last in heard.items():
        if time.monotonic() - last > self._silence:
          return self._report(
            f"process {process} has not answered for {self._silence:g} s"
          )
    if 0 not in self._links:
      _send(self._links.values(), _DONE)
    return self._left.set()

  def _report(self, why: str, status: int = 1) -> None:
    if not self._failed.is_set():  # Else this process ended the others.
      self.fail(why, status)
      self._end(why, status)


def _read_hello(
  link: connection.Connection,
) -> tuple[int, str] | tuple[None, None]:
  """Reads the number and settings of a new process; (None, None) if invalid."""
  try:
    hello = json.loads(link.recv_bytes(_MAX_MESSAGE))
    return int(hello["process"]), hello["settings"]
  except (OSError, EOFError, ValueError, KeyError, TypeError):
    return None, None


def _make_link(link: socket.socket) -> connection.Connection:
  """Makes a connection for whole messages (bytes, no objects)."""
  link.setblocking(True)
  link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  # Limit the time between the start and the end of a message.
  patience = struct.pack("ll", _MESSAGE_SECONDS, 0)
  link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
  return connection.Connection(link.detach())


def _send(links: Iterable[connection.Connection], message: str) -> None:
  """Sends a message to all links; the watch will notice lost peers."""
  for link in links:
    with contextlib.suppress(OSError):
      link.send_bytes(message.encode()[:_MAX_MESSAGE])


def _format_processes(processes: list[int]) -> str:
  numbers = ", ".join(map(str, processes))
  return f"process{'es' if len(processes) > 1 else ''} {numbers}"
