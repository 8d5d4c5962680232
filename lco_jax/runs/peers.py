"""The processes of one job watch one another, so that none waits for the dead.

Process 0 listens at the job's address. The others connect (the roll call) and
stay connected; both ends send a beat now and then. Whose connection breaks, or
who is silent for too long, is lost: process 0 tells all others who it is, and
every process ends with one line that says so. Who fails says why, first.

JAX's own coordination ends a job as well, but does not name who never came, and
aborts with a stack trace. This file knows nothing of JAX.
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
_LONGEST = 2**12  # Bytes of a message; short ones are sent in one piece.
_PAUSE = 0.2  # Seconds between two attempts to reach process 0.
_PATIENCE = 2  # Seconds for the rest of a message.

Links = dict[int, connection.Connection]


class PeerError(RuntimeError):
  """A process of the job did not come, or cannot be reached."""


def call_roll(
  address: tuple[str, int],
  num_processes: int,
  timeout: float,
  settings: str,
  notes: Callable[[], Mapping],
) -> tuple[Links, dict]:
  """Process 0's part of the roll call: waits for all others.

  Args:
    address: host and port to listen at, on that host's interface alone.
    num_processes: of the job, this one included.
    timeout: seconds to wait.
    settings: a text that must be the same in all processes.
    notes: called when all are there, for plain values to send them.

  Returns:
    (connections by process, the notes).

  Raises:
    PeerError: naming who did not come in time or was started otherwise; those
      who came are told.
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
            f"{_named(missing)} did not come to {address[0]}:{address[1]}"
            f" within {timeout:g} s"
          )
          break
        expected = [server, *strangers, *links.values()]
        for ready in connection.wait(expected, left):
          if ready is server:
            strangers.append(_linked(server.accept()[0]))
            continue
          if ready not in strangers:  # It hung up, and may come again.
            links = {p: link for p, link in links.items() if link is not ready}
            continue
          process, theirs = _first_words(ready)
          if process is None:  # Not of this job: no reason to end it.
            strangers.remove(ready)
            ready.close()
          elif process in links or not 0 < process < num_processes:
            problem = (
              f"process {process} came twice, or the job has fewer processes"
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
    handed_round = dict(notes())
    _tell(links.values(), json.dumps({"notes": handed_round}))
    _tell(strangers, json.dumps({"refused": "the job is complete"}))
    return links, handed_round
  _tell([*links.values(), *strangers], json.dumps({"refused": problem}))
  raise PeerError(problem)


def answer_roll(
  address: tuple[str, int], process_id: int, timeout: float, settings: str
) -> tuple[Links, dict]:
  """Every other process' part: connects to process 0, waits for the rest.

  Args:
    address: at which process 0 listens.
    process_id: of this process.
    timeout: seconds to wait.
    settings: as of `call_roll`.

  Returns:
    (the connection to process 0, under 0; the notes).

  Raises:
    PeerError: if process 0 cannot be reached in time, or the job cannot begin.
  """
  deadline = time.monotonic() + timeout
  hello = json.dumps({"process": process_id, "settings": settings}).encode()
  problem = "it does not answer"
  while (left := deadline - time.monotonic()) > 0:
    try:
      link = _linked(socket.create_connection(address, timeout=left))
      link.send_bytes(hello)
      # Process 0 has the same patience, and may have come later.
      if link.poll(left + timeout):
        answer = json.loads(link.recv_bytes(_LONGEST))
        if "refused" in answer:
          raise PeerError(answer["refused"])
        return {0: link}, answer["notes"]
    except (OSError, EOFError) as error:
      problem = getattr(error, "strerror", None) or "it hung up"
    except (ValueError, KeyError):
      problem = "something else answers there"
    time.sleep(_PAUSE)
  raise PeerError(
    f"process 0 cannot be reached at {address[0]}:{address[1]}"
    f" within {timeout:g} s: {problem}"
  )


class Watch:
  """Keeps the connections of a job alive and ends the process without them.

  A thread of its own: the main one may be waiting for a peer that is gone.
  """

  def __init__(self, links: Links, silence: float, end: Callable[[str], None]):
    """Begins to watch.

    Args:
      links: connections by process, from the roll call.
      silence: seconds after which a process that says nothing is lost.
      end: called once, in the thread, with a line that says who is lost or has
        failed, and the exit status for that; ends this process.
    """
    self._links = links
    self._silence = silence
    self._end = end
    self._done = threading.Event()  # This process has said so.
    self._failed = threading.Event()  # Likewise.
    self._left = threading.Event()  # Every process is done.
    threading.Thread(target=self._run, daemon=True).start()

  def leave(self) -> None:
    """Ends in good order: returns when every process has called it."""
    if 0 in self._links:  # Process 0 answers when all have said so.
      _tell(self._links.values(), _DONE)
    self._done.set()
    self._left.wait()

  def fail(self, why: str, status: int) -> None:
    """Tells the others to end, and why; this process is about to.

    Args:
      why: a line.
      status: with which they are to exit.
    """
    self._failed.set()
    _tell(self._links.values(), json.dumps({"why": why, "status": status}))

  def settle(self, seconds: float) -> None:
    """Leaves it to the watch to end this process, if a peer is to blame.

    Args:
      seconds: to wait for that.
    """
    time.sleep(seconds if self._links else 0)

  def _run(self):
    heard = dict.fromkeys(self._links, time.monotonic())
    interval = min(1.0, self._silence / 5)
    beaten = time.monotonic()
    while heard or not self._done.is_set():
      if time.monotonic() - beaten >= interval:
        beaten = time.monotonic()
        _tell(self._links.values(), _BEAT)
      if not heard:
        self._done.wait(interval)
      watched = {self._links[process]: process for process in heard}
      for link in connection.wait(list(watched), interval) if watched else []:
        process = watched[link]
        try:
          message = link.recv_bytes(_LONGEST).decode()
        except (OSError, EOFError):
          return self._lost(f"process {process} is gone")
        if message == _DONE:
          del heard[process]
        elif message == _BEAT:
          heard[process] = time.monotonic()
        else:
          return self._lost(**json.loads(message))
      for process, last in heard.items():
        if time.monotonic() - last > self._silence:
          return self._lost(
            f"process {process} has not answered for {self._silence:g} s"
          )
    if 0 not in self._links:
      _tell(self._links.values(), _DONE)
    return self._left.set()

  def _lost(self, why: str, status: int = 1) -> None:
    if not self._failed.is_set():  # Else the others end because of this one.
      self.fail(why, status)
      self._end(why, status)


def _first_words(
  link: connection.Connection,
) -> tuple[int, str] | tuple[None, None]:
  """The number and settings that a process comes with."""
  try:
    hello = json.loads(link.recv_bytes(_LONGEST))
    return int(hello["process"]), hello["settings"]
  except (OSError, EOFError, ValueError, KeyError, TypeError):
    return None, None


def _linked(link: socket.socket) -> connection.Connection:
  """A connection that sends and receives whole messages (bytes, no objects)."""
  link.setblocking(True)
  link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  # Who begins a message has to finish it.
  patience = struct.pack("ll", _PATIENCE, 0)
  link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
  return connection.Connection(link.detach())


def _tell(links: Iterable[connection.Connection], message: str) -> None:
  """Sends to those who are there; who is not will be found out."""
  for link in links:
    with contextlib.suppress(OSError):
      link.send_bytes(message.encode()[:_LONGEST])


def _named(processes: list[int]) -> str:
  numbers = ", ".join(map(str, processes))
  return f"process{'es' if len(processes) > 1 else ''} {numbers}"
