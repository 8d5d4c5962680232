"""Language: the functions that make a `Training` of a task and a model.

A stream is a prompt: N of them in an update. The steps of a stream are its G
samples, so a minibatch holds G/M samples of every prompt, and a group's
advantages are known before it is divided. Axes: samples G, prompts N, tokens C,
vocabulary V.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lco_jax import (
  advantages,
  diagnostics,
  generation,
  losses,
  networks,
  numerics,
  objectives,
  targets,
  tasks,
  token_objectives,
  training,
  types,
  update,
)

Array = jax.Array
DEVICE_AXIS = update.DEVICE_AXIS

REWARDS = ("exact", "shaped")


def _in_groups(estimate: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """An estimate over the last axis, for rewards [G, N]."""
  return lambda reward: jnp.moveaxis(
    estimate(jnp.moveaxis(reward, 0, -1)), -1, 0
  )


def _batch_centred(reward: Array) -> Array:
  """Rewards minus the mean over all prompts of all devices."""
  mean, _ = diagnostics.moments(reward, DEVICE_AXIS)
  return reward - mean


# Reward float[G, N] → advantage float[G, N].
ADVANTAGES: dict[str, Callable[[Array], Array]] = {
  "group_relative": _in_groups(advantages.group_relative),
  "group_centred": _in_groups(advantages.group_centred),
  "leave_one_out": _in_groups(advantages.leave_one_out),
  "batch_centred": _batch_centred,
}


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  algorithm: token_objectives.Algorithm,
  objective: objectives.Objective,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
  num_samples: int,
  num_epochs: int,
  num_minibatches: int,
  sampling: generation.Sampling,
  beta: float,
  nonpositive_beta_multiple: float = 1.0,
  reward: str = "exact",
  reward_noise: float = 0.0,
) -> training.Training:
  """Builds the training of a policy on the rewards of what it samples.

  The parameters have a part "reference" beside "policy", which stays as it is:
  the policy that training began with.

  Args:
    task: asks and verifies.
    model: the policy.
    algorithm: from `token_objectives.ALGORITHMS`.
    objective: from `token_objectives.make_token_objective`.
    optimizer: of the policy.
    num_prompts: N over all devices.
    num_samples: G.
    num_epochs: passes over each batch.
    num_minibatches: minibatches of each pass, a divisor of G.
    sampling: the distribution that completions are sampled from.
    beta: KL strength of the optimal target, positive and finite.
    nonpositive_beta_multiple: factor on β where the advantage is ≤ 0.
    reward: `exact`, 1 for a solution; `shaped`, the share of the answer's
      tokens that are in place (1 for another solution).
    reward_noise: probability that a reward r is turned into 1 − r.

  Raises:
    ValueError: if a number or a name is out of range.
  """
  if num_samples < 2 and algorithm.advantage != "batch_centred":
    raise ValueError(
      f"num_samples must be ≥ 2 for {algorithm.advantage} advantages,"
      f" got {num_samples}"
    )
  if reward not in REWARDS:
    raise ValueError(f"reward: unknown {reward!r}; known: {', '.join(REWARDS)}")
  if not 0 <= reward_noise < 0.5:
    raise ValueError(f"reward_noise must be in [0, 0.5), got {reward_noise}")
  if sampling.temperature == 0:
    raise ValueError("temperature must be positive in training")
  for name, value in (
    ("beta", beta),
    ("nonpositive_beta_multiple", nonpositive_beta_multiple),
  ):
    if not 0 < value < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {value}")
  draw = tasks.draw_from(task, "train")

  def collect(params, actor, keys):
    problem_keys, sample_keys, noise_keys = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
    )
    problems = _repeated(jax.vmap(draw)(problem_keys), num_samples)
    sample_keys = jax.vmap(
      lambda key: jax.random.split(key, num_samples), out_axes=1
    )(sample_keys)
    completion = generation.generate(
      model.apply,
      model.empty_cache,
      params["policy"],
      problems.prompt.reshape(-1, task.prompt_length),
      problems.padding.reshape(-1),
      sample_keys.reshape(-1),
      task.completion_length,
      tasks.END,
      sampling,
    )
    completion = jax.tree.map(
      lambda x: x.reshape(num_samples, -1, *x.shape[1:]), completion
    )
    answers = (problems, completion.tokens, completion.mask)
    correct = jax.vmap(jax.vmap(task.verify))(*answers)
    value = correct.astype(jnp.float32)
    if reward == "shaped":
      near = jax.vmap(jax.vmap(tasks.agreement))(*answers)
      value = jnp.maximum(value, near)
    if reward_noise:
      turned = jax.vmap(
        lambda key: jax.random.bernoulli(key, reward_noise, (num_samples,)),
        out_axes=1,
      )(noise_keys)
      value = jnp.where(turned, 1.0 - value, value)
    return actor, types.Samples(
      prompt=problems.prompt,
      padding=problems.padding,
      action=completion.tokens,
      mask=completion.mask,
      logits=completion.logits,
      reward=value,
      correct=correct,
      truncated=completion.truncated,
    )

  def prepare(params, samples):
    advantage = ADVANTAGES[algorithm.advantage](samples.reward)
    even = jnp.broadcast_to(
      jnp.ptp(samples.reward, axis=0, keepdims=True) == 0, advantage.shape
    )
    counted = samples.mask
    if algorithm.drops_even_groups:
      counted = counted & ~even[..., None]
    advantage = jnp.where(counted, advantage[..., None], 0.0)
    reference_logits = generation.completion_logits(
      model.apply,
      params["reference"],
      samples.prompt,
      samples.padding,
      samples.action,
    )
    batch = _batch(
      samples,
      counted,
      advantage,
      targets.optimal_logits(
        samples.logits,
        advantages.sampled(advantage, samples.action, model.vocab_size),
        targets.sign_dependent_beta(advantage, beta, nonpositive_beta_multiple),
      ),
      numerics.action_log_prob(reference_logits, samples.action),
      algorithm.weighting,
    )
    metrics = sample_metrics(samples, even) | update.across_devices(
      {
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
        "kl_reference": numerics.average(
          losses.kl_divergence(samples.logits, reference_logits), samples.mask
        ),
        "target_residual_before": numerics.average(
          diagnostics.target_residual(batch.target_logits, samples.logits),
          counted,
        ),
      }
    )
    return batch, metrics

  def assess(params, batch):
    logits = completion_policy(model)(params["policy"], batch)
    return update.across_devices(
      {
        "kl_old_new": numerics.average(
          losses.kl_divergence(batch.old_logits, logits), batch.mask
        ),
        "target_residual_after": numerics.average(
          diagnostics.target_residual(batch.target_logits, logits), batch.mask
        ),
      }
    )

  def init_params(key):
    params = model.init(key)
    return {"policy": params, "reference": params}

  return training.Training(
    init_params=init_params,
    init_actor=lambda keys: (),
    collect=collect,
    prepare=prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=assess,
    optimizers={"policy": optimizer},
    headline="correct",
    num_streams=num_prompts,
    num_steps=num_samples,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
  )


def make_warm_start(
  task: tasks.Task,
  model: networks.LanguageModel,
  optimizer: optax.GradientTransformation,
  *,
  num_prompts: int,
) -> training.Training:
  """Builds supervised training on right answers, −log π of their tokens.

  It is REINFORCE of the answers with an advantage of 1, one update a batch.

  Args:
    task: what is asked.
    model: the policy.
    optimizer: of the policy.
    num_prompts: N over all devices.
  """
  draw = tasks.draw_from(task, "train")

  def collect(params, actor, keys):
    problems = _repeated(jax.vmap(draw)(keys), 1)
    mask = problems.answer != tasks.PADDING
    logits = generation.completion_logits(
      model.apply,
      params["policy"],
      problems.prompt,
      problems.padding,
      problems.answer,
    )
    solved = jnp.all(
      (jnp.argmax(logits, axis=-1) == problems.answer) | ~mask, axis=-1
    )
    return actor, types.Samples(
      prompt=problems.prompt,
      padding=problems.padding,
      action=problems.answer,
      mask=mask,
      logits=logits,
      reward=solved.astype(jnp.float32),
      correct=solved,
      truncated=jnp.zeros_like(solved),
    )

  def prepare(params, samples):
    ones = samples.mask.astype(jnp.float32)
    batch = _batch(
      samples, samples.mask, ones, samples.logits, 0.0 * ones, "token"
    )
    metrics = update.across_devices(
      {
        "correct": numerics.average(samples.reward),
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
      }
    )
    return batch, metrics

  objective = token_objectives.make_token_objective(
    completion_policy(model), objectives.reinforce()
  )
  return training.Training(
    init_params=lambda key: {"policy": model.init(key)},
    init_actor=lambda keys: (),
    collect=collect,
    prepare=prepare,
    update=update.make_update(objective, {"policy": optimizer}),
    assess=lambda params, batch: {},
    optimizers={"policy": optimizer},
    headline="correct",
    num_streams=num_prompts,
    num_steps=1,
    num_epochs=1,
    num_minibatches=1,
  )


def completion_policy(
  model: networks.LanguageModel,
) -> Callable[[types.Params, types.TokenBatch], Array]:
  """(policy parameters, TokenBatch) → logits [..., C, V] of its completions."""
  return lambda params, batch: generation.completion_logits(
    model.apply, params, batch.prompt, batch.padding, batch.action
  )


def sample_metrics(samples: types.Samples, even: Array) -> types.Metrics:
  """What was sampled, over all devices.

  Args:
    samples: [G, N], this device's share.
    even: bool[G, N], samples of groups whose rewards are all equal.
  """
  length = jnp.sum(samples.mask, axis=-1).astype(jnp.float32)
  mean, variance = diagnostics.moments(samples.reward, DEVICE_AXIS)
  shares = {
    "correct": samples.correct,
    "truncated": samples.truncated,
    "even_groups": even,
  }
  return {
    "reward_mean": mean,
    "reward_std": jnp.sqrt(variance),
    "completion_length_max": jax.lax.pmax(jnp.max(length), DEVICE_AXIS),
  } | update.across_devices(
    {k: numerics.average(v.astype(jnp.float32)) for k, v in shares.items()}
    | {"completion_length_mean": numerics.average(length)}
  )


def _repeated(problems: tasks.Problem, num_samples: int) -> tasks.Problem:
  """[N, ...] → [G, N, ...]."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x[None], (num_samples, *x.shape)), problems
  )


def _batch(
  samples: types.Samples,
  counted: Array,
  advantage: Array,
  target_logits: Array,
  reference_log_prob: Array,
  weighting: str,
) -> types.TokenBatch:
  weight, share = token_objectives.token_weights(counted, weighting)
  return types.TokenBatch(
    prompt=samples.prompt,
    padding=samples.padding,
    action=samples.action,
    mask=counted,
    weight=weight,
    share=share,
    advantage=advantage,
    old_logits=samples.logits,
    old_log_prob=numerics.action_log_prob(samples.logits, samples.action),
    target_logits=target_logits,
    reference_log_prob=reference_log_prob,
  )
