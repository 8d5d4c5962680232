"""Loaded by the process that starts those which score, and by no other.

It imports what they need, so that they start quickly. A process that takes too
long is replaced; if its pool ends at this moment, the new one finds no pool and
ends, which is no error to tell of.
"""

import sys

import lco_jax.tasks  # noqa: F401 (imported for the processes to come)


def _hide_late_starts(kind, error, trace):
  if not isinstance(error, FileNotFoundError):
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _hide_late_starts
