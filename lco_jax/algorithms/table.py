"""Table of algorithms for control and language.

An algorithm is a policy loss with its use of a batch: the advantage estimator
in language, and the weights of tokens.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from types import NoneType

import jax.numpy as jnp
from jax import Array

from lco_jax import checks, losses, numerics
from lco_jax.algorithms import policy_losses

# Weights of a completion's tokens in the mean loss:
#   token     equal for all tokens of the batch
#   sequence  equal total for all completions, independent of their length
#   constant  equal for all tokens, 1 / the longest possible completion
WEIGHTINGS = ("token", "sequence", "constant")
# Weights in place of advantages:
#   vmpo         `losses.vmpo_weights`, the better half of the batch
#   exponential  `losses.lco_weights`, e^{A/β} with the mean 1
WEIGHTS = ("vmpo", "exponential")


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One row of the table of algorithms.

  Attributes:
    policy_loss: options → PolicyLoss.
    advantage: default advantage signal in language, one of `signals.NAMES`.
    weighting: one of WEIGHTINGS.
    drops_even_groups: whether to drop groups whose samples all have the same
      reward instead of counting them with advantage 0.
    weights: name of the weights that replace its advantages, one of WEIGHTS;
      None for the advantages themselves.
    has_target: whether its loss reads β and the optimal target.
    joint: whether its loss reads the probability of an action's dimensions
      together, not of each; see `control.dimensions`.
    of_sequences: whether a token's loss depends on other tokens of its
      sequence.
  """

  policy_loss: Callable[..., policy_losses.PolicyLoss]
  advantage: str
  weighting: str
  drops_even_groups: bool = False
  weights: str | None = None
  has_target: bool = False
  joint: bool = False
  of_sequences: bool = False

  def __post_init__(self):
    checks.check_choice("weighting", self.weighting, WEIGHTINGS)
    if self.weights is not None:
      checks.check_choice("weights", self.weights, WEIGHTS)


def _make_lco(policy_loss, weights: str | None = None) -> Algorithm:
  return Algorithm(
    policy_loss, "group_relative", "token", weights=weights, has_target=True
  )


ALGORITHMS = {
  "lco_mse": _make_lco(policy_losses.lco_mse),
  "lco_lch": _make_lco(policy_losses.lco_lch),
  "lco_kld": _make_lco(policy_losses.lco_kld),
  "lco_fisher": _make_lco(policy_losses.lco_fisher),
  "lco_proximal_kl": _make_lco(policy_losses.lco_proximal_kl),
  "lco_residual": _make_lco(policy_losses.lco_residual),
  "lco_residual_lch": _make_lco(policy_losses.lco_residual_lch),
  "lco_weighted": _make_lco(policy_losses.lco_weighted, weights="exponential"),
  "ppo": Algorithm(policy_losses.ppo, "learned", "token", joint=True),
  "reinforce": Algorithm(policy_losses.reinforce, "batch_centred", "token"),
  "rloo": Algorithm(policy_losses.reinforce, "leave_one_out", "token"),
  "grpo": Algorithm(policy_losses.ppo, "group_relative", "sequence"),
  "dr_grpo": Algorithm(policy_losses.ppo, "group_centred", "constant"),
  "dapo": Algorithm(
    policy_losses.dapo, "group_relative", "token", drops_even_groups=True
  ),
  "gspo": Algorithm(
    policy_losses.gspo, "group_relative", "sequence", of_sequences=True
  ),
  "cispo": Algorithm(
    policy_losses.cispo, "group_relative", "token", joint=True
  ),
  "mdpo": Algorithm(policy_losses.mdpo, "group_relative", "token", joint=True),
  "awr": Algorithm(policy_losses.awr, "group_relative", "token"),
  "apa": Algorithm(policy_losses.apa, "group_relative", "token", joint=True),
  "cmpo": Algorithm(policy_losses.cmpo, "group_relative", "token"),
  "vmpo": Algorithm(
    policy_losses.vmpo, "group_relative", "token", weights="vmpo"
  ),
}

# Those that differ from others by what they do in language alone.
_FOR_LANGUAGE = ("rloo", "grpo", "dr_grpo", "dapo", "gspo")
# Trainings that are no policy losses, and a key of configs: their names would
# hide a registered loss.
_RESERVED = ("sft", "dpo", "qrm", "rebel", "chosen")
# The algorithms that control trains with.
CONTROL = {k: row for k, row in ALGORITHMS.items() if k not in _FOR_LANGUAGE}


def register(
  name: str,
  advantage: str = "group_relative",
  weighting: str = "token",
  **fields: bool | str | None,
) -> Callable:
  """Registers a policy loss of your own as an algorithm.

      @lco_jax.register_policy_loss("my_loss")
      def make_my_loss(slope: float = 1.0):
        def loss(logits, batch):  # [..., A], fields [...]
          return losses_of_steps, {}  # float[...], metrics
        return loss

  The keyword arguments of the decorated function become the algorithm's options
  in `--config`. Control, language and pretrained models can use it.

  Args:
    name: of the algorithm.
    advantage: default advantage signal in language, one of `signals.NAMES`.
    weighting: one of WEIGHTINGS.
    **fields: further fields of `Algorithm`, such as has_target.

  Raises:
    ValueError: if the name is taken or cannot be one; the weighting or the
      weights are unknown; or an option has no type, no default, or the name
      of an option of another type.
    TypeError: if `Algorithm` has no such field.

  Losses and metrics of other shapes than [...] raise a ValueError in training.
  """
  function = "register_policy_loss"

  def add(policy_loss: Callable) -> Callable:
    checks.check_new_name(function, name, (*ALGORITHMS, *_RESERVED))
    known = {}
    for row in ALGORITHMS.values():
      known |= option_types(row.policy_loss)
    for option, kind in option_types(policy_loss).items():
      if known.get(option, kind) != kind:
        raise ValueError(
          f"{function}: {option}: another algorithm has an option of this name"
          f" and of type {known[option].__name__}"
        )
    checked = _check_results(policy_loss, name)
    row = Algorithm(checked, advantage, weighting, **fields)
    ALGORITHMS[name] = CONTROL[name] = row
    return policy_loss

  return add


def _check_results(make_loss: Callable, name: str) -> Callable:
  """Wraps a user's loss: results of a wrong form raise a ValueError."""

  @functools.wraps(make_loss)
  def make(**options):
    loss = make_loss(**options)

    @functools.wraps(loss)
    def checked(logits, batch):
      found = loss(logits, batch)
      if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"{name}: the loss must return (losses, metrics)")
      values, metrics = found
      wanted = batch.old_log_prob.shape
      for key, own in {"losses": values, **metrics}.items():
        if jnp.shape(own) != wanted:
          raise ValueError(
            f"{name}: {key} must have one number for each step, shape {wanted},"
            f" got {jnp.shape(own)}; do not average"
          )
      return found

    return checked

  return make


def option_types(policy_loss: Callable) -> dict[str, type]:
  """Lists the options of a policy loss with their types, without None.

  Raises:
    ValueError: if an option has no default, or neither a type nor a default
      that tells it.
  """
  hints, found = typing.get_type_hints(policy_loss), {}
  for name, parameter in inspect.signature(policy_loss).parameters.items():
    if parameter.default is parameter.empty:
      raise ValueError(
        f"{policy_loss.__name__}: option {name!r} has no default"
      )
    hint = hints.get(name, type(parameter.default))
    kinds = [k for k in (typing.get_args(hint) or (hint,)) if k is not NoneType]
    if len(kinds) != 1 or kinds[0] not in (bool, int, float, str):
      raise ValueError(
        f"{policy_loss.__name__}: option {name!r} must be a bool, int, float or"
        " str, and say so by its annotation or its default"
      )
    found[name] = kinds[0]
  return found


def list_options(algorithm: str) -> tuple[str, ...]:
  """Lists the names of an algorithm's options.

  Raises:
    ValueError: if the algorithm is unknown.
  """
  checks.check_choice("algorithm", algorithm, ALGORITHMS)
  policy_loss = ALGORITHMS[algorithm].policy_loss
  return tuple(inspect.signature(policy_loss).parameters)


def options_by_name(
  names: Iterable[str] = ALGORITHMS,
) -> dict[str, tuple[str, ...]]:
  """Lists the options of several algorithms, {algorithm: names}."""
  return {name: list_options(name) for name in names}


def make_policy_loss(algorithm: str, **options) -> policy_losses.PolicyLoss:
  """Builds an algorithm's policy loss.

  Args:
    algorithm: a key of ALGORITHMS.
    **options: the algorithm's own options.

  Raises:
    ValueError: if the algorithm is unknown, it has no such option, or an
      option's value is out of range.
  """
  known = list_options(algorithm)
  for name in options:
    if name not in known:
      takes = ", ".join(known) or "no options"
      raise ValueError(f"{name}: {algorithm} takes {takes}")
  return ALGORITHMS[algorithm].policy_loss(**options)


def weigh_steps(
  algorithm: Algorithm,
  advantage: Array,
  beta: Array,
  dual_bound: float,
  where: Array | None = None,
) -> Array:
  """Replaces advantages by the weights that an algorithm takes.

  Args:
    algorithm: a row of ALGORITHMS.
    advantage: float[...], this device's share.
    beta: float[...], KL strength of the targets.
    dual_bound: ε of V-MPO's weights, > 0, nats, where they are taken.
    where: bool[...], steps that count; None means all.

  Returns:
    float[...]; the advantages themselves where the algorithm takes them. To be
    called under an axis named DATA_AXIS if it takes weights.
  """
  axis = numerics.DATA_AXIS
  if algorithm.weights == "vmpo":
    return losses.vmpo_weights(advantage, dual_bound, where, axis)
  if algorithm.weights == "exponential":
    return losses.lco_weights(advantage, beta, where, axis)
  return advantage
