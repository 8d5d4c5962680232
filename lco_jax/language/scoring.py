"""Scoring completions in processes of their own, with a time limit each.

A verifier is other people's code: it may take forever, or the process with it.
Then the completion is worth nothing, and its process is replaced.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple

import pebble

from lco_jax import tasks

# Times that a completion is handed to processes that end before they score it.
_TRIES = 3
# Seconds from one look at whether the processes are well to the next.
_GLANCE = 1.0


class ScoringError(RuntimeError):
  """Nothing can be scored: processes end before they do."""


class Score(NamedTuple):
  """What a completion is worth.

  Attributes:
    value: in [0, 1].
    failed: whether the verifier took too long, or failed.
  """

  value: float
  failed: bool


class Waiting(NamedTuple):
  """A completion that is being scored.

  Attributes:
    entry: the problem.
    completion: text.
    future: of what it is worth.
    pool: of the processes that it was handed to.
  """

  entry: dict[str, Any]
  completion: str
  future: concurrent.futures.Future
  pool: pebble.ProcessPool


class Scorer(contextlib.AbstractContextManager):
  """Scores completions of a task side by side."""

  def __init__(self, task: tasks.TextTask, num_workers: int, seconds: float):
    """Starts the processes.

    Args:
      task: that the completions are of.
      num_workers: processes.
      seconds: time limit of one completion.
    """
    self._task, self._num_workers = task, num_workers
    self._seconds = seconds
    # A fork of this process would copy the locks of JAX's threads.
    self._context = multiprocessing.get_context("forkserver")
    self._context.set_forkserver_preload(["lco_jax.tasks"])
    _start_server()
    self._pool = self._make_pool()

  def submit(self, entry: dict[str, Any], completion: str) -> Waiting:
    """Begins to score; `collect` waits for it."""
    arguments = {"args": (entry, completion), "timeout": self._seconds}
    try:
      future = self._pool.schedule(self._task.score, **arguments)
    except RuntimeError:  # The pool is broken: see `_score`.
      self._end()
      self._pool = self._make_pool()
      future = self._pool.schedule(self._task.score, **arguments)
    return Waiting(entry, completion, future, self._pool)

  def collect(self, waiting: Sequence[Waiting]) -> list[Score]:
    """Waits for scores, in the order of `waiting`.

    Raises:
      ScoringError: if processes end before they score anything.
    """
    return [self._score(own) for own in waiting]

  def _score(self, waiting: Waiting) -> Score:
    for _ in range(_TRIES):
      try:
        return Score(float(_result(waiting)), failed=False)
      except BrokenProcessPool:
        # A process ended that was not scoring: the system was out of memory,
        # say. The pool does not survive it; the completion is not to blame.
        waiting = self.submit(waiting.entry, waiting.completion)
      except Exception:  # Whatever a verifier raises; or its time was up.
        return Score(0.0, failed=True)
    raise ScoringError("the processes that score end before they do")

  def _make_pool(self) -> pebble.ProcessPool:
    return pebble.ProcessPool(
      max_workers=self._num_workers,
      context=self._context,
      initializer=_load,  # No completion waits for it within its time.
      initargs=(self._task,),
    )

  def _end(self) -> None:
    self._pool.stop()
    self._pool.join()

  def __exit__(self, *_):
    """Ends the processes."""
    self._end()


def _result(waiting: Waiting) -> float:
  """What a completion is worth.

  A pool that breaks says so of what its processes were handed. What they were
  not yet handed would be waited for without end.

  Raises:
    BrokenProcessPool: if the processes ended.
    Exception: what the verifier raised, or that its time was up.
  """
  future = waiting.future
  while not future.done():
    if not waiting.pool.active:
      raise BrokenProcessPool("the processes ended")
    concurrent.futures.wait([future], timeout=_GLANCE)
  return future.result()


def _start_server() -> None:
  """Starts the server that workers are forked from, out of SIGTERM's way.

  Schedulers send it to all processes of a job. This one is to save its state
  then, which takes scores to the end of the chunk under way.
  """
  resource_tracker.ensure_running()  # Or it would let the signal in again.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
  try:
    forkserver.ensure_running()
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load(task):
  # What is sent to a whole group is not for a worker; what the pool sends is.
  os.setsid()
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
  task.load()
