"""What a program consists of, the programs inside of it included."""

import jax


def of(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in jax.tree.leaves(
        value, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
      ):
        if hasattr(inner, "jaxpr"):
          yield from of(inner.jaxpr)
        elif hasattr(inner, "eqns"):
          yield from of(inner)
