"""Division of a model over the axes fsdp and tensor of a mesh.

XLA's partitioner divides the work. Functions here say which axis of an array
lies along which axis of the mesh, and do nothing under a mesh without
FSDP_AXIS and TENSOR_AXIS:

    FSDP_AXIS    parameters, their gradients and optimizer state; a layer's
                 matrices are gathered where they are used. Rows of activations.
    TENSOR_AXIS  heads, hidden units of the gated linear unit, and logits.

Source: Rajbhandari et al. 2020, arXiv:1910.02054 (fully sharded parameters);
Shoeybi et al. 2019, arXiv:1909.08053 (heads and hidden units).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from lco_jax.networks import transformer_config

FSDP_AXIS = "fsdp"
TENSOR_AXIS = "tensor"
AXES = (FSDP_AXIS, TENSOR_AXIS)

# Axes of the mesh along which the last axes of an array lie; one may lie along
# several.
Axes = tuple[str | tuple[str, ...] | None, ...]
# XLA fails to partition a look-up in a vocabulary that is divided.
EMBEDDING: Axes = (None, (TENSOR_AXIS, FSDP_AXIS))
# From the width to heads, hidden units or vocabulary, and back.
INTO: Axes = (FSDP_AXIS, TENSOR_AXIS)
BACK: Axes = (TENSOR_AXIS, FSDP_AXIS)
# Of the parameters of linear layers, by the layer's name.
_LAYERS = {
  **dict.fromkeys(("query", "key", "value", "gate", "up"), INTO),
  **dict.fromkeys(("attention/output", "down"), BACK),
  "output": INTO,
}


def check_divisible(
  config: transformer_config.TransformerConfig, sizes: Mapping[str, int]
) -> None:
  """Checks that the axes of a mesh divide a model.

  Args:
    config: of the model.
    sizes: devices along the mesh's axes, by name.

  Raises:
    ValueError: naming the axis and the size that it does not divide.
  """
  for axis, names in (
    (FSDP_AXIS, ("width",)),
    (TENSOR_AXIS, ("num_heads", "num_kv_heads", "mlp_width", "vocab_size")),
  ):
    count = sizes.get(axis, 1)
    for name in names:
      if getattr(config, name) % count:
        raise ValueError(
          f"mesh: {axis}:{count} does not divide the model's {name}"
          f" {getattr(config, name)}"
        )


def axis_size(axis: str) -> int:
  """Devices along an axis of the mesh that a program runs under; 1 without."""
  return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


def any_shard(condition: Array) -> Array:
  """Whether a condition holds on any device along the other axes of the mesh.

  A loop whose body moves arrays along FSDP_AXIS or TENSOR_AXIS must take as
  many turns on all devices: XLA may let all of them wait for each other.
  Without such an axis the condition is returned as it is.

  Args:
    condition: bool[], the device's own.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if max(map(axis_size, AXES)) == 1:
    return condition
  others = tuple(name for name in mesh.manual_axes if mesh.shape[name] > 1)
  if not others:
    return condition
  return jax.lax.pmax(condition.astype(jnp.int32), others) > 0


def constrain(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
  """Lays the last axes of an array along axes of the mesh.

  Axes that the mesh does not have, or whose size does not divide the array's,
  count as None. The array's other axes are not divided.
  """
  sizes = {axis: axis_size(axis) for axis in AXES}
  if max(sizes.values()) == 1:
    return x
  spec = _fit(x.shape, axes, sizes)
  return jax.lax.with_sharding_constraint(x, P(*spec))


def gather(matrix: Array, axes: Axes) -> Array:
  """Gathers a matrix along FSDP_AXIS; its gradient is divided again.

  Args:
    matrix: whose last axes lie along `axes`.
    axes: of the mesh.
  """
  used = tuple(None if axis == FSDP_AXIS else axis for axis in axes)
  return lay(matrix, (axes, used))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def lay(matrix: Array, layouts: tuple[Axes, ...]) -> Array:
  """Moves a matrix from layout to layout, and its gradient back.

  Args:
    matrix: which lies along the first layout.
    layouts: one after the other. XLA replicates what moves along two axes of
      the mesh at once.
  """
  for axes in layouts[1:]:
    matrix = constrain(matrix, *axes)
  return matrix


def _lay_forward(matrix, layouts):
  return lay(matrix, layouts), None


def _lay_backward(layouts, _, gradient):
  for axes in layouts[-2::-1]:
    gradient = constrain(gradient, *axes)
  return (gradient,)


lay.defvjp(_lay_forward, _lay_backward)


def lay_vocabulary(table: Array) -> Array:
  """Moves an embedding, so that devices divide the rows of an output layer."""
  return lay(table, (EMBEDDING, (None, TENSOR_AXIS), (TENSOR_AXIS, None)))


def gather_all(params: Any, dtype: jax.typing.DTypeLike) -> Any:
  """Gathers all matrices that `gather` would gather, in a narrower type.

  A loop over tokens then gathers nothing. Arrays that are not divided along
  FSDP_AXIS alone stay as they are.

  Args:
    params: of a model.
    dtype: of its computation.
  """
  if axis_size(FSDP_AXIS) == 1:
    return params

  def gather_leaf(path, leaf):
    axes = list_axes(path)
    return gather(leaf.astype(dtype), axes) if FSDP_AXIS in axes else leaf

  return jax.tree_util.tree_map_with_path(gather_leaf, params)


def look_up(table: Array, tokens: Array) -> Array:
  """Takes rows of an embedding [V, W], which lies along EMBEDDING.

  Args:
    table: the embedding.
    tokens: int32[R].

  Returns:
    [R, W], whose rows lie along FSDP_AXIS.
  """
  rows = jnp.take(table, constrain(tokens, None), axis=0)
  rows = constrain(rows, *EMBEDDING)
  return lay(rows, (EMBEDDING, (FSDP_AXIS, TENSOR_AXIS), (FSDP_AXIS, None)))


def list_axes(path: Sequence[Any]) -> Axes:
  """Lists the axes of the mesh along which a parameter's last axes lie.

  Args:
    path: of jax.tree_util, to the parameter or a part of an optimizer's state
      that is like it.
  """
  names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
  *_, parent, layer, kind = ["", "", "", *names]
  if kind == "embedding":
    return EMBEDDING
  axes = _LAYERS.get(f"{parent}/{layer}", _LAYERS.get(layer))
  if axes is None:
    return ()
  if kind == "bias":
    return axes[1:]
  if kind in ("kernel", "a", "b"):  # Of adapters, one axis is the rank.
    return {"kernel": axes, "a": (axes[0], None), "b": (None, axes[1])}[kind]
  return ()


def make_spec(
  path: Sequence[Any], shape: Sequence[int], sizes: Mapping[str, int]
) -> tuple[str | tuple[str, ...] | None, ...]:
  """Makes the entries of a PartitionSpec of a parameter.

  Args:
    path: as of `list_axes`.
    shape: of the parameter.
    sizes: devices along the mesh's axes, by name.
  """
  return _fit(shape, list_axes(path), sizes)


def count_parts(
  path: Sequence[Any], shape: Sequence[int], sizes: Mapping[str, int]
) -> int:
  """Counts the parts of a parameter; arguments are those of `make_spec`."""
  entries = make_spec(path, shape, sizes)
  names = [e for e in entries if isinstance(e, str)]
  names += [name for e in entries if isinstance(e, tuple) for name in e]
  return math.prod(sizes[name] for name in names)


def replicate(tree: Any) -> Any:
  """Gives all devices of a mesh the whole of arrays."""
  if max(map(axis_size, AXES)) == 1:
    return tree
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree
  )


def constrain_params(tree: Any) -> Any:
  """Lays parameters, or what is like them, as they are held between updates."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: constrain(leaf, *list_axes(path)), tree
  )


def _fit(
  shape: Sequence[int], axes: Axes, sizes: Mapping[str, int]
) -> tuple[str | tuple[str, ...] | None, ...]:
  """Entries for all axes of a shape, None for those that cannot be divided."""
  axes = axes[-len(shape) :] if shape else ()
  axes = (None,) * (len(shape) - len(axes)) + tuple(axes)

  def fit(size, axis):
    names = axis if isinstance(axis, tuple) else (axis,)
    names = tuple(name for name in names if sizes.get(name, 1) > 1)
    if not names or size % math.prod(sizes[name] for name in names):
      return None
    return names if len(names) > 1 else names[0]

  return tuple(map(fit, shape, axes))
