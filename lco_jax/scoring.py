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
from multiprocessing import forkserver, resource_tracker
from typing import Any, NamedTuple

import pebble

from lco_jax import tasks


class Score(NamedTuple):
  """What a completion is worth.

  Attributes:
    value: in [0, 1].
    failed: whether the verifier took too long, or failed.
  """

  value: float
  failed: bool


class Scorer(contextlib.AbstractContextManager):
  """Scores completions of a task side by side."""

  def __init__(self, task: tasks.TextTask, num_workers: int, seconds: float):
    """Starts the processes.

    Args:
      task: that the completions are of.
      num_workers: processes.
      seconds: time limit of one completion.
    """
    self._task, self._seconds = task, seconds
    # A fork of this process would copy the locks of JAX's threads; one of a
    # server that has only read the code is made in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lco_jax.tasks"])
    _start_server()
    self._pool = pebble.ProcessPool(
      max_workers=num_workers,
      context=context,
      initializer=_load,  # No completion waits for it within its time.
      initargs=(task,),
    )

  def submit(
    self, entry: dict[str, Any], completion: str
  ) -> concurrent.futures.Future:
    """Begins to score; `collect` waits for it."""
    return self._pool.schedule(
      self._task.score, args=(entry, completion), timeout=self._seconds
    )

  def collect(
    self, futures: Sequence[concurrent.futures.Future]
  ) -> list[Score]:
    """Waits for scores, in the order of `futures`."""
    return [_result(future) for future in futures]

  def __exit__(self, *_):
    """Ends the processes."""
    self._pool.stop()
    self._pool.join()


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


def _result(future: concurrent.futures.Future) -> Score:
  try:
    return Score(float(future.result()), failed=False)
  except Exception:  # Whatever a verifier raises; or its time was up.
    return Score(0.0, failed=True)
