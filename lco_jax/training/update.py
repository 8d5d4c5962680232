"""One optimizer step, and the epochs of minibatches that it is repeated over.

Written for one shard of the data on a mapped device axis: sums and counts are
added over the axis before they are divided, so every device takes the same
step, the one that the whole batch asks for. The body does not know whether the
axis comes from `jax.shard_map`, `jax.pmap` or `jax.vmap(axis_name=...)`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lco_jax import numerics, types
from lco_jax.networks import partitioning
from lco_jax.training import rows

# Metric by which an update is stopped early: KL(π_old ‖ π) of a minibatch.
KL = "minibatch_kl"

# (params, batch, params before the epochs) → (loss of each part, metrics), as
# sums and counts.
Objective = Callable[
  [dict[str, types.Params], Any, dict[str, types.Params]],
  tuple[dict[str, numerics.Average], dict[str, numerics.Average]],
]
# (params, opt_state, batch, params before the epochs) → (params, opt_state,
# metrics).
Update = Callable[
  ...,
  tuple[dict[str, types.Params], dict[str, Any], dict[str, numerics.Average]],
]


def make_update(
  objective: Objective,
  optimizers: dict[str, optax.GradientTransformation],
  watch: Mapping[str, Callable[[dict[str, types.Params]], Any]] | None = None,
  split: Callable[[Any], Any] | None = None,
) -> Update:
  """Builds the step: gradient → sum over devices → optax, part by part.

  Args:
    objective: (params, batch, params before the epochs) → (losses by part,
      metrics). The loss of a part depends on the parameters of that part, and
      of parts that are not trained.
    optimizers: an optax chain for each part that is trained, so that one part's
      gradient norm never clips another's. Other parts stay as they are.
    watch: {name: gradients by part → those whose norm is a metric}.
    split: minibatch → microbatches [parts, ...] whose gradients are added up
      one after the other, to the gradient of the minibatch; None for the
      minibatch at once.

  Returns:
    (params, opt_state, batch, before=None) → (params, opt_state, metrics),
    where `before` are the parameters before the epochs, None if this is the
    first step of them. To be called under an axis named DATA_AXIS.
  """

  def total_loss(trained, frozen, batch, before):
    parts, metrics = objective(trained | frozen, batch, before)
    return sum(part.total for part in parts.values()), (parts, metrics)

  def sum_gradients(trained, frozen, batch, before):
    """Gradients of the sums of losses; the sums and metrics."""
    gradient = jax.grad(total_loss, has_aux=True)
    if split is None:
      return gradient(trained, frozen, batch, before)

    def add(sums, microbatch):
      own, others = gradient(trained, frozen, microbatch, before)
      own = partitioning.constrain_params(own)
      return jax.tree.map(jnp.add, sums, (own, others)), None

    microbatches = split(batch)
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(gradient, trained, frozen, first, before),
    )
    zeros = (partitioning.constrain_params(zeros[0]), zeros[1])
    return jax.lax.scan(add, zeros, microbatches)[0]

  def update(params, opt_state, batch, before=None):
    trained = {name: params[name] for name in optimizers}
    frozen = {name: params[name] for name in params.keys() - optimizers.keys()}
    gradients, (parts, metrics) = sum_gradients(
      trained, frozen, batch, params if before is None else before
    )
    gradients = _divide_sums(partitioning.constrain_params(gradients), parts)
    for name, select in (watch or {}).items():
      metrics[name] = numerics.average(optax.tree.norm(select(gradients)))
    new_params, new_opt_state = dict(frozen), {}
    for name, optimizer in optimizers.items():
      updates, new_opt_state[name] = optimizer.update(
        gradients[name], opt_state[name], params[name]
      )
      new_params[name] = optax.apply_updates(params[name], updates)
      metrics[f"{name}_loss"] = parts[name]
      metrics[f"{name}_gradient_norm"] = numerics.average(
        optax.tree.norm(gradients[name])
      )
      metrics[f"{name}_update_norm"] = numerics.average(
        optax.tree.norm(updates)
      )
    return new_params, new_opt_state, metrics

  return update


def _divide_sums(
  gradients: dict[str, Any], parts: dict[str, numerics.Average]
) -> dict[str, Any]:
  """Adds gradients and counts over devices, then divides them once."""
  gradients, counts = numerics.psum(
    (gradients, {name: parts[name].count for name in gradients}),
    numerics.DATA_AXIS,
  )
  return {
    name: jax.tree.map(
      lambda total, count=counts[name]: numerics.Average(total, count).mean,
      own,
    )
    for name, own in gradients.items()
  }


def minibatch_indices(
  keys: types.PRNGKey, num_steps: int, num_epochs: int, num_minibatches: int
) -> Array:
  """Which time steps each minibatch takes of each environment.

  Time is shuffled within every environment, so a minibatch holds T/M steps of
  each, however the environments are dealt to devices.

  Args:
    keys: PRNG keys [N], one for each environment.
    num_steps: T.
    num_epochs: E.
    num_minibatches: M, a divisor of T.

  Returns:
    int32[E · M, T / M, N], time indices.
  """
  permutations = jax.vmap(
    lambda key: random_permutations(key, num_epochs, num_steps), out_axes=-1
  )
  indices = permutations(keys)  # [E, T, N]
  return indices.reshape(
    num_epochs * num_minibatches, num_steps // num_minibatches, len(keys)
  )


def random_permutations(key: types.PRNGKey, count: int, size: int) -> Array:
  """Independent random permutations of range(size).

  Sorts random words that carry the index in their low bits: sorting one array
  is several times faster on CPU than sorting keys together with values. Words
  whose random bits coincide stay in index order, which happens to about one
  pair in 2³² / size.

  Args:
    key: PRNG key.
    count: how many permutations.
    size: of each.

  Returns:
    int32[count, size].
  """
  index_bits = max(1, (size - 1).bit_length())
  low = jnp.uint32((1 << index_bits) - 1)
  words = jax.random.bits(key, (count, size), jnp.uint32) & ~low
  words = words | jnp.arange(size, dtype=jnp.uint32)[None]
  return (jnp.sort(words, axis=-1) & low).astype(jnp.int32)


def run_epochs(
  update: Update,
  params: dict[str, types.Params],
  opt_state: dict[str, Any],
  batch: Any,
  indices: Array,
  max_kl: float | None = None,
) -> tuple[
  dict[str, types.Params], dict[str, Any], dict[str, numerics.Average]
]:
  """Scans the update over all minibatches of all epochs.

  Args:
    update: the step.
    params: by part.
    opt_state: by part.
    batch: pytree of [T, N, ...], this device's share.
    indices: int32[E · M, T / M, N], from `minibatch_indices`.
    max_kl: for early stopping, nats: from the first minibatch on in which
      KL(π_old ‖ π), which the objective must measure, is more, the policy stays
      as it is. Its optimizer's state goes on, so that schedules end where they
      should, and so does the value. None for none.

  Returns:
    params, opt_state, and the metrics of each minibatch, summed and counted
    over devices: Averages of [E · M].
  """
  before = params

  def step(carry, times):
    params, opt_state, stopped = carry
    new, opt_state, metrics = update(
      params, opt_state, rows.take_steps(batch, times), before
    )
    if max_kl is not None:
      kl = numerics.psum(metrics[KL], numerics.DATA_AXIS).mean
      stopped = stopped | (kl > max_kl)
      new = new | {
        "policy": jax.tree.map(
          lambda old, new: jnp.where(stopped, old, new),
          params["policy"],
          new["policy"],
        )
      }
      norm = metrics["policy_update_norm"]
      metrics |= {
        "policy_update_norm": numerics.Average(
          jnp.where(stopped, 0.0, norm.total), norm.count
        ),
        "early_stopped": numerics.average(stopped.astype(jnp.float32)),
      }
    return (new, opt_state, stopped), metrics

  (params, opt_state, _), metrics = jax.lax.scan(
    step, (params, opt_state, jnp.bool_(False)), indices
  )
  return params, opt_state, numerics.psum(metrics, numerics.DATA_AXIS)
