"""Signals that come while a compiled program runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import compiler, scripts

# A loop of hours, in which Python calls no handler of a signal.
_PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from experiments.common import command_line

stop = command_line.StopSignal()
run = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2.0, jnp.sin, x))
run.lower(1.0).compile()
print("running", flush=True)
if "closed" in sys.argv:
  sys.stderr.close()
jax.block_until_ready(run(1.0))
"""


@pytest.fixture(params=["open", "closed"])
def process(request):
  """A process that runs the loop; its standard error may be closed."""
  own = subprocess.Popen(
    [sys.executable, "-c", _PROGRAM, request.param],
    cwd=scripts.ROOT,
    env=os.environ | {"XLA_FLAGS": compiler.flags(1)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert own.stdout.readline() == "running\n"
  time.sleep(1.0)
  yield own, request.param == "closed"
  own.kill()
  own.wait()


def test_a_second_interrupt_ends_at_once(process):
  own, is_closed = process
  own.send_signal(signal.SIGTERM)
  own.send_signal(signal.SIGINT)
  time.sleep(0.5)
  assert own.poll() is None
  own.send_signal(signal.SIGINT)
  _, complaint = own.communicate(timeout=20)
  assert own.returncode == 130
  if not is_closed:
    assert "Ctrl-C again ends at once" in complaint
    assert complaint.splitlines()[-1].startswith("interrupted; ")
