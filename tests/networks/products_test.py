"""Products of bfloat16: in float32, with gradients of their own type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lco_jax.networks import products
from tests import equations

_CASES = {
  "ri,io->ro": ((5, 300), (300, 4)),
  "rw,vw->rv": ((5, 300), (7, 300)),
  "bkmd,bksd->bkms": ((2, 3, 5, 300), (2, 3, 4, 300)),
  "bkms,bksd->bkmd": ((2, 3, 5, 300), (2, 3, 300, 4)),
}


def _operands(spec, dtype):
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(dtype)
    for shape in _CASES[spec]
  ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", _CASES)
def test_value_and_gradients_against_float64(spec, dtype):
  left, right = _operands(spec, dtype)
  found, pullback = jax.vjp(
    lambda left, right: products.product(spec, left, right), left, right
  )
  wide = [np.asarray(x, np.float64) for x in (left, right)]
  assert found.dtype == jnp.float32
  # Sums of 300 products, to the digits of float32.
  np.testing.assert_allclose(found, np.einsum(spec, *wide), atol=5e-5)
  rng = np.random.default_rng(1)
  cotangent = jnp.asarray(rng.normal(size=found.shape), jnp.bfloat16)
  inputs, output = spec.split("->")
  one, two = inputs.split(",")
  back = np.asarray(cotangent, np.float64)
  expected = (
    np.einsum(f"{output},{two}->{one}", back, wide[1]),
    np.einsum(f"{output},{one}->{two}", back, wide[0]),
  )
  for own, true in zip(
    pullback(cotangent.astype(jnp.float32)), expected, strict=True
  ):
    assert own.dtype == dtype
    # bfloat16 has eight digits.
    tolerance = 2**-8 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(own, true, rtol=tolerance, atol=tolerance)


def test_no_product_mixes_types():
  """As gradients of float32 for operands of bfloat16 would."""

  def loss(left, right):
    return jnp.sum(jnp.sin(products.product("ri,io->ro", left, right)))

  operands = _operands("ri,io->ro", jnp.bfloat16)
  program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*operands)
  types = [
    [str(operand.aval.dtype) for operand in equation.invars]
    for equation in equations.of(program.jaxpr)
    if equation.primitive.name == "dot_general"
  ]
  assert types == [["bfloat16", "bfloat16"]] * 3
