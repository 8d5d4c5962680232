"""Language: the functions that make a `Training` of a task and a model.

A stream is a prompt: N of them in an update. The steps of a stream are its G
samples, so a minibatch holds G/M samples of every prompt, and a group's
advantages are known before it is divided. Axes: samples G, prompts N, tokens C,
vocabulary V.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from lco_jax import (
  algorithms,
  checks,
  diagnostics,
  losses,
  networks,
  numerics,
  targets,
  tasks,
)
from lco_jax.algorithms import policy_losses
from lco_jax.language import counting, data, generation, objectives, signals
from lco_jax.language import metrics as language_metrics
from lco_jax.training import loss_geometry, program, update

Array = jax.Array

REWARDS = ("exact", "shaped")


def make_training(
  task: tasks.Task,
  model: networks.LanguageModel,
  algorithm: algorithms.Algorithm,
  policy_loss: policy_losses.PolicyLoss,
  optimizers: Mapping[str, optax.GradientTransformation],
  *,
  num_prompts: int,
  num_samples: int,
  num_epochs: int,
  num_minibatches: int,
  sampling: generation.Sampling,
  beta: float,
  nonpositive_beta_multiple: float = 1.0,
  advantage: str | None = None,
  value_model: networks.LanguageModel | None = None,
  discount: float = 1.0,
  gae_lambda: float = 1.0,
  num_known: int = 5,
  dual_bound: float = 0.1,
  entropy_coefficient: float = 0.0,
  reference_coefficient: float = 0.0,
  max_kl: float | None = None,
  reward: str = "exact",
  reward_noise: float = 0.0,
  diagnose: bool = False,
) -> program.Training:
  """Builds the training of a policy on the rewards of what it samples.

  The parameters have a part "reference" beside "policy", which stays as it is:
  the policy that training began with, unless another is given. So do those of
  the "verifier" that two signals need.

  Args:
    task: asks and verifies.
    model: the policy.
    algorithm: from `table.ALGORITHMS`.
    policy_loss: the algorithm's, with its options.
    optimizers: of the part "policy", and of "value" for learned advantages.
    num_prompts: N over all devices.
    num_samples: G.
    num_epochs: passes over each batch.
    num_minibatches: minibatches of each pass, a divisor of G.
    sampling: the distribution that completions are sampled from.
    beta: KL strength of the optimal target, positive and finite.
    nonpositive_beta_multiple: factor on β where the advantage is ≤ 0.
    advantage: one of `signals.NAMES`; None for the algorithm's own.
    value_model: for learned advantages; begins with the policy's body.
    discount: of learned advantages, γ in [0, 1].
    gae_lambda: of learned advantages, λ in [0, 1].
    num_known: of a verifier's advantages, tokens that it is asked about.
    dual_bound: ε of V-MPO's weights, > 0, nats, where they are taken.
    entropy_coefficient: weight of the entropy bonus, ≥ 0.
    reference_coefficient: weight of the KL to the reference, ≥ 0.
    max_kl: KL of a minibatch at which the policy's epochs stop, > 0, nats; None
      for none.
    reward: `exact`, 1 for a solution; `shaped`, the share of the answer's
      tokens that are in place (1 for another solution).
    reward_noise: probability that a reward r is turned into 1 − r.
    diagnose: whether the geometry of the policy loss is logged; for a loss of
      each token alone.

  Raises:
    ValueError: if a number or a name is out of range.
  """
  advantage = advantage or algorithm.advantage
  counting.check_groups(algorithm, advantage, num_samples)
  if advantage == "learned" and value_model is None:
    raise ValueError("value_model must be given for learned advantages")
  if advantage == "oracle" and not task.one_answer:
    raise ValueError(
      f"advantage: oracle needs a task with one right answer, not {task.name}"
    )
  if reward not in REWARDS:
    raise ValueError(f"reward: unknown {reward!r}; known: {', '.join(REWARDS)}")
  if not 0 <= reward_noise < 0.5:
    raise ValueError(f"reward_noise must be in [0, 0.5), got {reward_noise}")
  for name, number in (
    ("beta", beta),
    ("nonpositive_beta_multiple", nonpositive_beta_multiple),
    ("dual_bound", dual_bound),
  ):
    checks.check_number(name, number, above=0.0)
  policy = generation.completion_outputs(model)
  value = None
  if advantage == "learned":
    outputs = generation.completion_outputs(value_model)

    def value(params, batch):
      return outputs(params, batch)[..., 0]

  estimate = signals.make(
    advantage,
    model,
    value,
    discount,
    gae_lambda,
    num_known,
  )

  def prepare(params, samples, completed):
    del completed
    signal = estimate(params, samples)
    counted = counting.of_batch(
      algorithm, samples, signal.advantage, dual_bound
    )
    looked_at = language_metrics.looked_at(samples)
    reference_logits = policy(
      params["reference"], samples if reference_coefficient else looked_at
    )
    reference_log_prob = jnp.zeros_like(signal.advantage)
    if reference_coefficient:
      reference_log_prob = numerics.action_log_prob(
        reference_logits, samples.action
      )
      reference_logits = language_metrics.looked_at(reference_logits)
    batch = make_batch(
      samples,
      counted.mask,
      signal._replace(advantage=counted.advantage),
      targets.optimal_logits(
        samples.logits,
        signal.dense,
        targets.sign_dependent_beta(
          signal.advantage, beta, nonpositive_beta_multiple
        ),
      ),
      reference_log_prob,
      algorithm.weighting,
    )
    metrics = language_metrics.of_samples(samples, counted.even)
    metrics |= language_metrics.of_target(batch, signal, samples)
    metrics |= numerics.across_devices(
      {
        "entropy": numerics.average(
          losses.entropy(samples.logits), samples.mask
        ),
        "kl_reference": numerics.average(
          losses.kl_divergence(looked_at.logits, reference_logits),
          looked_at.mask,
        ),
      }
    )
    if value is not None:
      metrics["explained_variance"] = diagnostics.explained_variance(
        signal.value, signal.value_target, numerics.DEVICE_AXIS, samples.mask
      )
    if task.one_answer:
      truth = signal.dense
      if advantage != "oracle":
        truth, _ = signals.exact(model)(params["policy"], samples)
      metrics |= signals.error(signal, truth, samples)
    return batch, metrics

  def assess(before, params, batch):
    some = language_metrics.looked_at(batch)
    logits = policy(params["policy"], some)
    metrics = language_metrics.of_change(some, logits)
    if diagnose:
      # What a token's loss depends on; the rest is of whole sequences.
      tokens = dataclasses.replace(some, prompt=None, padding=None, share=None)
      metrics |= loss_geometry.of_loss(policy_loss, logits, tokens, some.mask)
      metrics |= loss_geometry.of_gradients(objective, before, params, some)
    return metrics

  objective = objectives.make_token_objective(
    policy,
    policy_loss,
    entropy_coefficient,
    reference_coefficient,
    value,
    measures_kl=max_kl is not None,
  )

  def init_params(key, given=()):
    given = dict(given)
    policy_key, value_key = jax.random.split(key)
    own = given["policy"] if "policy" in given else model.init(policy_key)
    parts = {"policy": own, "reference": own}
    if value is not None:
      parts["value"] = networks.with_body_of(value_model.init(value_key), own)
    if advantage in signals.OF_VERIFIERS:
      parts["verifier"] = own
    if advantage == "preference":
      parts["verifier_reference"] = own
    return parts | given

  return program.Training(
    init_params=init_params,
    init_actor=lambda keys: (),
    collect=make_sampler(
      task, model, num_samples, sampling, reward, reward_noise
    ),
    prepare=prepare,
    update=update.make_update(
      objective,
      dict(optimizers),
      {"attention_gradient_norm": lambda g: networks.attention_of(g["policy"])},
    ),
    assess=assess,
    optimizers=dict(optimizers),
    headline="correct",
    num_streams=num_prompts,
    num_steps=num_samples,
    num_epochs=num_epochs,
    num_minibatches=num_minibatches,
    max_kl=max_kl,
    long_reductions=True,
  )


def make_sampler(
  task: tasks.Task,
  model: networks.LanguageModel,
  num_samples: int,
  sampling: generation.Sampling,
  reward: str = "exact",
  reward_noise: float = 0.0,
) -> Callable:
  """`collect` of a Training: draws prompts, completes and verifies them.

  Args:
    task: asks and verifies.
    model: the policy.
    num_samples: G.
    sampling: the distribution that completions are sampled from.
    reward: as of `make_training`.
    reward_noise: as of `make_training`.

  Returns:
    (params, (), keys [N]) → ((), Samples [G, N]), by the part "policy".
  """
  if sampling.temperature == 0:
    raise ValueError("temperature must be positive in training")
  draw = tasks.draw_from(task, "train")

  def collect(params, actor, keys):
    problem_keys, sample_keys, noise_keys = jnp.moveaxis(
      jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
    )
    asked = jax.vmap(draw)(problem_keys)
    sample_keys = jax.vmap(
      lambda key: jax.random.split(key, num_samples), out_axes=1
    )(sample_keys)
    completion = generation.generate(
      model,
      params["policy"],
      asked.prompt,
      asked.padding,
      sample_keys.reshape(-1),
      task.completion_length,
      tasks.END,
      sampling,
    )
    completion = jax.tree.map(
      lambda x: x.reshape(num_samples, -1, *x.shape[1:]), completion
    )
    problems = repeated(asked, num_samples)
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
    return actor, data.Samples(
      prompt=problems.prompt,
      padding=problems.padding,
      action=completion.tokens,
      mask=completion.mask,
      answer=problems.answer,
      logits=completion.observed,
      reward=value,
      correct=correct,
      truncated=completion.truncated,
    )

  return collect


def repeated(problems: tasks.Problem, num_samples: int) -> tasks.Problem:
  """Problems [N, ...] for G samples of each, [G, N, ...]."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x[None], (num_samples, *x.shape)), problems
  )


def make_batch(
  samples: data.Samples,
  counted: Array,
  signal: signals.Signal,
  target_logits: Array,
  reference_log_prob: Array,
  weighting: str,
) -> data.TokenBatch:
  """What an objective needs of completions.

  Args:
    samples: [G, N].
    counted: bool[G, N, C], tokens that count.
    signal: what they were worth.
    target_logits: float[G, N, C, V], optimal logits z*.
    reference_log_prob: float[G, N, C], of the reference policy.
    weighting: one of `objectives.WEIGHTINGS`.
  """
  weight, share = objectives.token_weights(counted, weighting)
  return data.TokenBatch(
    prompt=samples.prompt,
    padding=samples.padding,
    action=samples.action,
    mask=counted,
    weight=weight,
    share=share,
    advantage=signal.advantage,
    old_logits=samples.logits,
    old_log_prob=numerics.action_log_prob(samples.logits, samples.action),
    target_logits=target_logits,
    reference_log_prob=reference_log_prob,
    value_target=signal.value_target,
  )
