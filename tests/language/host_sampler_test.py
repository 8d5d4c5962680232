"""Collecting completions of texts: what is cut off does not count."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lco_jax import algorithms, networks, numerics
from lco_jax.language import generation, host_sampler, scoring, training
from lco_jax.trainers import llm_task
from lco_jax.training import host_loop, optimizers, placement
from lco_jax.training import program as program_lib

_PROMPTS, _SAMPLES, _LONGEST = 4, 2, 24
_VOCABULARY = 32


@dataclasses.dataclass(frozen=True)
class _Words:
  """Stands in for a task, a tokenizer and a scorer: a token is a number."""

  end: tuple[int, ...]
  more: int = 0

  def problem(self, split, number):
    del split
    return {"question": "x" * (1 + number % 5)}

  def encode(self, text, begins):
    del begins
    return [1 + len(text)] * len(text)

  def decode(self, tokens):
    return " ".join(map(str, tokens))

  def token(self, number):
    return str(number)

  def submit(self, entry, text):
    return (self.more + len(entry["question"] + text)) % 3 / 2

  def collect(self, waiting):
    return [scoring.Score((value,), failed=value == 0.5) for value in waiting]


def _collector(
  end,
  algorithm="dr_grpo",
  max_visits=1,
  show=lambda *_: None,
  more=0,
  exact=True,
  **options,
):
  """(what collects, state at the start, mesh, task)."""
  words = _Words(tuple(end), more)
  model = networks.make_language_model(
    networks.TransformerConfig(
      vocab_size=_VOCABULARY,
      num_layers=1,
      width=8,
      num_heads=2,
      num_kv_heads=1,
      mlp_width=16,
    )
  )
  row = algorithms.ALGORITHMS[algorithm]
  setup = training.Setup(
    model,
    row,
    row.policy_loss(),
    host_sampler.make_sampler(_LONGEST, max_visits),
    training.Options(num_prompts=_PROMPTS, num_samples=_SAMPLES),
    keeps_reference=False,
  )
  optimizer = optimizers.make_optimizer("sgd", lambda count: 1.0, None)
  task = training.make_training(setup, {"policy": optimizer})
  mesh = placement.make_mesh(1, _PROMPTS, jax.local_devices()[:1])
  params = jax.jit(model.init)(jax.random.key(0))
  given = {"policy": jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)}
  state = program_lib.initial_state(task, (0,), mesh, given)
  asking = host_sampler.Asking(
    task=words,
    tokenizer=words,
    instruction="",
    chat=False,
    completion_length=_LONGEST,
    context_length=64,
    reward=llm_task.make_reward(
      {"reward": "exact" if exact else "score"}, words
    ),
    **{"sampling": generation.Sampling()} | options,
  )
  collector = host_sampler.TextCollector(
    asking, model, task, mesh, (0,), words, setup.policy_params, show=show
  )
  return collector, state, mesh, task


def _collected(end, algorithm="dr_grpo"):
  """(samples, parameters after an update on them)."""
  collector, state, mesh, task = _collector(end, algorithm)
  samples = collector.collect(state)

  def learn(state, samples):
    step = functools.partial(program_lib.learn_step, task)
    return jax.vmap(step)(state, state.actor, samples)

  program = placement.compile(
    learn,
    mesh,
    (placement.STATE, placement.ROLLOUTS),
    (placement.STATE, placement.SEEDS),
    state,
    samples,
  )
  after, _ = program(state, samples)
  return jax.tree.map(np.asarray, (samples, after.params))


def test_slots_behind_the_longest_completion_change_nothing(monkeypatch):
  # Its weights are of the longest completion that there can be.
  algorithm = "dr_grpo"
  end = range(0, _VOCABULARY, 2)  # Every second token ends a completion.
  cut, cut_params = _collected(end, algorithm)
  monkeypatch.setattr(host_sampler, "_SHORTEST", 32)
  whole, params = _collected(end, algorithm)
  longest = whole.mask.sum(-1).max()
  assert 1 < longest <= 8  # Or nothing could be cut off.
  assert (cut.action.shape[-1], whole.action.shape[-1]) == (8, _LONGEST)
  assert cut.packed_tokens < cut.mask.size - cut.mask[..., 0].size
  for field in dataclasses.fields(whole):
    if field.name == "packed_tokens":  # As the update is the same.
      continue
    own, kept = (getattr(x, field.name) for x in (whole, cut))
    if own is None:  # The host knows no answer's tokens.
      assert kept is None
      continue
    if own.shape != kept.shape:
      own = own[:, :, :, :8]
    np.testing.assert_array_equal(own, kept, field.name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
    cut_params,
    params,
  )


def test_refilled_slots_change_nothing_but_steps(monkeypatch):
  end = range(0, _VOCABULARY, 4)
  collected, steps = [], []
  for num_slots in (0, 3):
    collector, state, _, _ = _collector(end, num_slots=num_slots)
    monkeypatch.setattr(
      host_sampler.phases, "make_counter", lambda *_: lambda n: steps.append(n)
    )
    monkeypatch.setattr(collector.phases, "count", lambda *_: None)
    collected.append(jax.device_get(collector.collect(state)))
  expected, found = collected
  lengths = expected.mask.sum(-1)
  assert steps[0] == lengths.max() - 1
  assert steps[1] >= np.sum(lengths - 1) / 3 > steps[0]
  assert len(set(expected.mask.sum(-1).flat)) > 2  # Lengths differ.
  for field in dataclasses.fields(expected):
    own, other = (getattr(x, field.name) for x in (found, expected))
    if own is None:
      continue
    if field.name in ("hidden", "log_prob"):
      mask = expected.mask.reshape(*own.shape[:4], *[1] * (own.ndim - 4))
      own, other = own * mask, other * mask
      np.testing.assert_allclose(own, other, atol=1e-5, err_msg=field.name)
    else:
      np.testing.assert_array_equal(own, other, field.name)


def test_prompts_of_several_lengths_are_cut_off(monkeypatch):
  collector, state, _, _ = _collector(range(0, _VOCABULARY, 2))
  assert collector.collect(state).prompt.shape[-1] == 16
  longer = lambda split, number: {"question": "x" * 20}
  monkeypatch.setattr(_Words, "problem", lambda self, *args: longer(*args))
  samples = collector.collect(state)
  assert (samples.prompt.shape[-1], samples.action.shape[-1]) == (24, 8)


def test_completions_that_do_not_end_stay_whole(caplog):
  """A warning says so, as they may never end."""
  samples, _ = _collected(end=[_VOCABULARY])
  assert samples.action.shape[-1] == _LONGEST and samples.mask.all()
  assert "no completion of the first update ended" in caplog.text
  caplog.clear()
  _collected(end=range(0, _VOCABULARY, 2))
  assert "first update" not in caplog.text


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("more", range(3))  # Each is worth all of it once.
def test_what_is_worth_a_part_is_not_correct(exact, more):
  """Nor is it a reward where only solutions are."""
  shown = []
  collector, state, _, _ = _collector(
    [1], show=lambda _, own: shown.extend(own), more=more, exact=exact
  )
  samples = jax.tree.map(np.asarray, collector.collect(state))
  rewards = set(samples.reward.ravel().tolist())
  assert rewards == ({0.0, 1.0} if exact else {0.0, 0.5, 1.0})
  np.testing.assert_array_equal(samples.correct, samples.reward == 1)
  # What is shown is what is learned from.
  first = samples.reward[0, :, 0]
  assert [example.reward for example in shown] == first.tolist()
  # What could not be scored is known; here it is what is worth a half.
  assert samples.failed.any() and not (samples.failed & samples.correct).any()
  if not exact:
    np.testing.assert_array_equal(samples.failed, samples.reward == 0.5)


def test_problems_that_leave_no_room_are_drawn_again():
  collector, _, _, _ = _collector([1])
  asking = collector._asking
  drawn = [asking.draw(0, stream, 3) for stream in range(20)]
  short = dataclasses.replace(asking, context_length=_LONGEST + 2)
  again = [short.draw(0, stream, 3) for stream in range(20)]
  for (problem, tokens), (other, fits) in zip(drawn, again, strict=True):
    assert len(fits) == len(other["question"]) <= 2
    assert len(tokens) > 2 or problem == other
  assert any(len(tokens) > 2 for _, tokens in drawn)
  with pytest.raises(ValueError, match="completion_length"):
    dataclasses.replace(asking, context_length=_LONGEST).draw(0, 0, 0)


def test_log_probabilities_are_the_policys_at_any_temperature():
  """Not those of the distribution that was sampled from."""
  sampling = generation.Sampling(temperature=0.3)
  collector, state, _, _ = _collector([1], sampling=sampling)
  samples = jax.tree.map(lambda leaf: leaf[0], collector.collect(state))
  params = jax.tree.map(lambda leaf: leaf[0], state.params["policy"])
  logits = collector._generation.model.head(params, samples.hidden)
  expected = numerics.action_log_prob(logits, samples.action)
  mask = np.asarray(samples.mask)
  np.testing.assert_allclose(
    np.asarray(samples.log_prob)[mask], np.asarray(expected)[mask], atol=1e-5
  )
  tempered = numerics.action_log_prob(logits / 0.3, samples.action)
  assert np.abs(np.asarray(tempered - expected)[mask]).max() > 0.1


def test_prompts_that_are_not_solved_are_met_again():
  """They are those of the update in which they were drawn."""
  collector, state, mesh, task = _collector([1], max_visits=3)
  rollouts, collect = [], collector.collect
  collector.collect = lambda state: (
    rollouts.append(collect(state)) or rollouts[-1]
  )
  program = host_loop.make_programs(collector, task, mesh, [1])[1]
  kept = 0
  for update in range(6):
    drawn = np.array(state.actor)[0]  # The program consumes the state.
    state, _, _ = program(state)
    asked = jax.tree.map(lambda leaf: np.asarray(leaf)[0], rollouts[-1])
    for stream in range(_PROMPTS):
      _, tokens = collector._asking.draw(0, stream, drawn[stream])
      padding = asked.padding[0, stream]
      assert asked.prompt[0, stream, padding:].tolist() == tokens
    np.testing.assert_array_equal(
      asked.first_visit, np.tile(drawn == update, (_SAMPLES, 1))
    )
    again = ~asked.correct.all(axis=0) & (update + 1 - drawn < 3)
    np.testing.assert_array_equal(
      np.asarray(state.actor)[0], np.where(again, drawn, update + 1)
    )
    kept += again.sum()
  assert 0 < kept < 6 * _PROMPTS
