"""Seconds, tokens and FLOPs of an update's phases."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.training import accelerators, phases, placement


def _mesh(devices=2):
  return placement.make_mesh(1, 2, jax.devices()[:devices])


def test_an_update_is_measured_and_forgotten():
  own = phases.Phases()
  for _ in range(2):
    with own.measure(phases.GENERATION):
      time.sleep(0.01)
  with own.measure(phases.SCORING):
    pass
  metrics = {"tokens": np.array([30.0, 10.0])}
  found = own.take(metrics, _mesh())
  assert set(found) == {
    "generation_seconds",
    "scoring_seconds",
    "generation_tokens_per_second",
  }
  seconds = found["generation_seconds"]
  assert seconds.shape == (2,) and 0.02 <= seconds[0] < 5
  np.testing.assert_allclose(
    found["generation_tokens_per_second"], 40 / seconds / 2
  )
  assert own.take(metrics, _mesh()) == {}
  assert set(found) <= set(phases.METRICS)


def test_utilisation_where_the_devices_figures_are_known(monkeypatch):
  left, right = jnp.ones((4, 8)), jnp.ones((8, 16))

  def generate(a, b):
    def step(carry):
      return carry[0] + 1, carry[1] + a @ b

    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, a @ b))

  jaxpr = jax.make_jaxpr(generate)(left, right).jaxpr
  assert phases.make_counter(jaxpr, _mesh())(3) == 0  # Not known of CPUs.
  monkeypatch.setitem(accelerators._PEAK_FLOPS, "cpu", 1e6)
  counter = phases.make_counter(jaxpr, _mesh())
  assert [counter(n) for n in (0, 3)] == [1024.0, 4 * 1024.0]
  own = phases.Phases()
  with own.measure(phases.UPDATE):
    time.sleep(0.01)
  own.count(phases.UPDATE, counter(3))
  found = own.take({"loss": np.zeros(1)}, _mesh())
  expected = 4096 / (found["update_seconds"] * 2 * 1e6)
  np.testing.assert_allclose(found["update_flops_utilisation"], expected)
  assert "update_tokens_per_second" not in found  # No tokens are known.


@pytest.mark.parametrize(
  ("kind", "flops"),
  [
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6e", 918e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("cpu", None),
  ],
)
def test_published_figures(kind, flops):
  assert accelerators.find_peak_flops(kind) == flops
