"""Scoring completions in processes of their own, with a time limit each.

A verifier is other people's code: it may take forever, or the process with it.
Then the completion is worth nothing, and its process is replaced.
"""

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Sequence
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


def _load(task):
  task.load()


def _result(future: concurrent.futures.Future) -> Score:
  try:
    return Score(float(future.result()), failed=False)
  except Exception:  # Whatever a verifier raises; or its time was up.
    return Score(0.0, failed=True)
