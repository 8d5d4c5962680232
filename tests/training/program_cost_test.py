"""Costs of programs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lco_jax.training import program_cost

_M, _K, _N = 4, 8, 16
_PRODUCT = 2 * _M * _K * _N


def _flops(function, *like, trips=1):
  return program_cost.count_flops(jax.make_jaxpr(function)(*like).jaxpr, trips)


@pytest.fixture
def matrices():
  return jnp.ones((_M, _K)), jnp.ones((_K, _N))


def test_products_and_their_gradients(matrices):
  left, right = matrices
  assert _flops(jnp.matmul, left, right) == _PRODUCT
  gradient = jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1))
  assert _flops(gradient, left, right) == 3 * _PRODUCT
  again = jax.grad(
    jax.checkpoint(lambda a, b: jnp.sum((a @ b) ** 2)), argnums=(0, 1)
  )
  assert _flops(again, left, right) == 4 * _PRODUCT


def test_batched_products(matrices):
  left, right = matrices
  batch = jnp.stack([left] * 3)
  found = _flops(lambda a, b: jnp.einsum("bmk,kn->bmn", a, b), batch, right)
  assert found == 3 * _PRODUCT


def test_loops_and_branches(matrices):
  left, right = matrices

  def scanned(a, b):
    return jax.lax.scan(lambda c, _: (c + a @ b, None), a @ b, None, 5)[0]

  assert _flops(scanned, left, right) == 6 * _PRODUCT

  def while_(a, b):
    return jax.lax.while_loop(
      lambda c: jnp.sum(c) < 1, lambda c: c + a @ b, jnp.zeros((_M, _N))
    )

  assert _flops(while_, left, right, trips=7) == 7 * _PRODUCT

  def branch(a, b):
    return jax.lax.cond(
      jnp.sum(a) > 0, lambda: 2 * (a @ b) + a @ b, lambda: a @ b
    )

  assert _flops(branch, left, right) == 2 * _PRODUCT


def test_what_devices_divide_is_counted_on_each(matrices):
  left, right = matrices
  mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
  divided = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
  )
  assert _flops(divided, left, right) == _PRODUCT


def test_collectives_of_a_loop():
  """A sum of 4 bytes in each of 5 turns, and one of 12 bytes after them."""
  mesh = Mesh(np.array(jax.devices()), ("data",))

  def sums(x):
    def step(carry, _):
      return carry + jax.lax.psum(jnp.sum(x * carry), "data"), None

    total, _ = jax.lax.scan(step, jnp.float32(1), None, length=5)
    return jax.lax.psum(jnp.stack([total, total + 1, total * 2]), "data")

  compiled = (
    jax.jit(
      jax.shard_map(
        sums, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False
      )
    )
    .lower(jnp.ones(8))
    .compile()
  )
  found = program_cost.count_collectives(compiled.as_text(), trips=100)
  assert found == {"all-reduce": {"count": 6.0, "bytes": 5 * 4.0 + 12.0}}


def test_a_collective_in_parts_counts_once():
  """As the TPU's compiler writes it; loops are bounded in their conditions."""
  text = """HloModule m

%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(3), metadata={}
  ROOT %lt = pred[] compare(%g, %c), direction=LT
}

%part.1 (a: bf16[2,4]) -> bf16[8,4] {
  ROOT %ag.1 = bf16[8,4]{1,0} all-gather(%a), channel_id=7, dimensions={0}
}

%part.2 (a: bf16[2,4]) -> bf16[8,4] {
  ROOT %ag.2 = bf16[8,4]{1,0} all-gather(%a), channel_id=7, dimensions={0}
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f1 = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part.1
  %f2 = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part.2
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t0), condition=%cond.1, body=%body.1
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), channel_id=8
  ROOT %r = f32[8] get-tuple-element(%w), index=1
}
"""
  found = program_cost.count_collectives(text, trips=100)
  assert found == {"all-gather": {"count": 4.0, "bytes": 3 * 64.0 + 64.0}}
