"""Training from Python, and the policies that it returns."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lco_jax
from lco_jax import environments, tasks
from lco_jax.control import normalization
from lco_jax.runs import run_directory
from tests import scripts

pytestmark = [
  pytest.mark.third_party,  # optax.
  pytest.mark.xdist_group("training_calls"),
]

_SHORT = {
  "num_seeds": 2,
  "total_steps": 512,
  "num_envs": 8,
  "num_steps": 8,
  "eval_episodes": 3,
  "show_progress": False,
}
_SMALL = {
  "num_seeds": 2,
  "num_updates": 3,
  "warm_start_updates": 4,
  "warm_start_prompts": 8,
  "num_prompts": 8,
  "num_samples": 4,
  "eval_problems": 8,
  "eval_samples": 2,
  "num_layers": 1,
  "width": 16,
  "num_heads": 2,
  "num_kv_heads": 2,
  "mlp_width": 16,
  "show_progress": False,
}


@pytest.fixture(scope="module")
def control(tmp_path_factory):
  """(directory, what the call returned) of a control run."""
  where = tmp_path_factory.mktemp("control") / "run"
  done = lco_jax.train(
    "probe:credit",
    "lco_fisher",
    normalize_observations=True,
    workdir=where,
    **_SHORT,
  )
  return where, done


@pytest.fixture(scope="module")
def language(tmp_path_factory):
  where = tmp_path_factory.mktemp("language") / "run"
  done = lco_jax.train_language("reversal:3", "grpo", workdir=where, **_SMALL)
  return where, done


def test_a_run_without_a_directory_is_the_same(control):
  where, done = control
  alone = lco_jax.train(
    "probe:credit", "lco_fisher", normalize_observations=True, **_SHORT
  )
  assert alone.settings == done.settings
  for name in ("final_return", "evaluation", "evaluation_sampled"):
    assert alone.summary[name] == done.summary[name]
  assert alone.metrics.keys() == done.metrics.keys()
  assert alone.metrics["entropy"].shape == (8, 2)
  for name, values in alone.metrics.items():
    # The file has seven digits.
    np.testing.assert_allclose(values, done.metrics[name], rtol=1e-6)
  observation = np.ones(done.policies[0].environment.observation_shape)
  for own, other in zip(alone.policies, done.policies, strict=True):
    np.testing.assert_array_equal(
      own.logits(observation), other.logits(observation)
    )


def test_a_call_writes_what_the_script_writes(control, tmp_path):
  where, done = control
  settings = {
    name: value
    for name, value in _SHORT.items()
    if name not in ("show_progress",)
  }
  ran = scripts.run(
    "train_control",
    "--config=experiments/configs/control.py:probe:credit",
    "--config.algorithm=lco_fisher",
    "--config.normalize_observations=True",
    *(f"--config.{name}={value}" for name, value in settings.items()),
    f"--workdir={tmp_path / 'run'}",
    devices=8,
  )
  assert ran.returncode == 0, ran.stderr
  theirs = tmp_path / "run"
  assert {path.name for path in theirs.iterdir()} == {
    path.name for path in where.iterdir()
  }
  for name in ("config.json", "metrics.csv"):
    assert (theirs / name).read_text() == (where / name).read_text()
  assert done.settings == run_directory.read_config(where)
  assert done.summary == json.loads((where / "summary.json").read_text())


def test_a_run_goes_on_where_it_ended(control, tmp_path):
  """A finished run is resumed: nothing is trained, all is read again."""
  where, done = control
  again = lco_jax.train(
    "probe:credit",
    "lco_fisher",
    normalize_observations=True,
    workdir=where,
    resume=True,
    **_SHORT,
  )
  assert again.summary["evaluation"] == done.summary["evaluation"]
  np.testing.assert_array_equal(
    again.metrics["entropy"], done.metrics["entropy"]
  )


def test_policies_are_read_bit_for_bit(control, tmp_path):
  where, done = control
  shape = done.policies[0].environment.observation_shape
  observation = np.random.default_rng(0).normal(size=(2, 5, *shape))
  for seed, own in enumerate(done.policies):
    read = lco_jax.load_policy(where, seed)
    read.save(tmp_path / f"{seed}")
    saved = lco_jax.load_policy(tmp_path / f"{seed}")
    for other in (read, saved):
      np.testing.assert_array_equal(
        own.logits(observation), other.logits(observation)
      )
  logits = own.logits(observation)
  assert logits.shape == (2, 5, own.environment.num_actions)
  np.testing.assert_array_equal(own.act(observation), logits.argmax(-1))
  key = jax.random.key(1)
  sampled = own(observation, key)
  np.testing.assert_array_equal(sampled, jax.random.categorical(key, logits))


def test_a_policy_normalises_as_in_training(control):
  _, done = control
  policy = done.policies[0]
  observation = np.full(policy.environment.observation_shape, 0.3, np.float32)
  moments = policy.params[normalization.OBSERVATIONS]
  without = {"policy": policy.params["policy"]}
  bare = dataclasses.replace(policy, params=without)
  scaled = (observation - moments["mean"]) / np.sqrt(moments["variance"])
  np.testing.assert_allclose(
    policy.logits(observation),
    bare.logits(np.clip(scaled, -10, 10)),
    rtol=1e-5,
    atol=1e-6,
  )


def test_one_learning_rate_of_several_is_read(tmp_path):
  ran = scripts.run(
    "train_control",
    "--config=experiments/configs/control.py:probe:credit",
    "--config.policy_learning_rates=(1e-3,1e-2)",
    *(
      f"--config.{name}={value}"
      for name, value in _SHORT.items()
      if name != "show_progress"
    ),
    f"--workdir={tmp_path / 'run'}",
  )
  assert ran.returncode == 0, ran.stderr
  with pytest.raises(ValueError, match="rate_0.001"):
    lco_jax.load_policy(tmp_path / "run")
  for rate in (1e-3, 1e-2):
    alone = lco_jax.train(
      "probe:credit", "lco_mse", policy_learning_rate=rate, **_SHORT
    )
    observation = np.ones(alone.policies[0].environment.observation_shape)
    for seed in range(2):
      read = lco_jax.load_policy(tmp_path / "run" / f"rate_{rate:g}", seed)
      np.testing.assert_allclose(
        read.logits(observation),
        alone.policies[seed].logits(observation),
        rtol=1e-4,
        atol=1e-5,
      )


def test_an_environment_of_ones_own_needs_no_name():
  own = dataclasses.replace(environments.make("probe:credit"), name="mine")
  done = lco_jax.train(own, "lco_mse", **_SHORT)
  named = lco_jax.train("probe:credit", "lco_mse", **_SHORT)
  assert done.settings["environment"] == "own:mine"
  np.testing.assert_array_equal(
    done.metrics["entropy"], named.metrics["entropy"]
  )


def test_a_language_policy_completes(language, tmp_path):
  where, done = language
  read = lco_jax.load_policy(where, 1)
  read.save(tmp_path / "policy")
  saved = lco_jax.load_policy(tmp_path / "policy")
  prompts = [example[0] for example in done.summary["evaluation"]["examples"]]
  greedy = lco_jax.load_policy(where).complete(prompts)
  # The summary shows the first seed's.
  assert greedy == [
    example[2] for example in done.summary["evaluation"]["examples"]
  ]
  for policy in (done.policies[1], saved):
    assert policy.complete(prompts) == read.complete(prompts)
    key = jax.random.key(0)
    assert policy(prompts, key) == read(prompts, key)
  assert read.logits(prompts[0]).shape == (
    len(prompts[0]),
    read.task.vocab_size,
  )


def test_a_task_of_ones_own_needs_no_name():
  own = dataclasses.replace(tasks.make("reversal:3"), name="mine")
  done = lco_jax.train_language(own, "grpo", **_SMALL)
  assert done.settings["task"] == "own:mine"
  assert done.metrics["correct"].shape == (3, 2)
  assert jnp.isfinite(done.summary["evaluation"]["mean"])


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"num_sedes": 2}, r"num_sedes: no such setting .*num_seeds"),
    ({"beta": "high"}, "beta must be of type float"),
    ({"num_envs": 0}, "num_envs"),
    ({"algorithm": "lco"}, "algorithm"),
    ({"environment": "CartPole"}, "CartPole"),
    ({"policy_learning_rates": (0.1,)}, "one policy_learning_rate"),
    ({"resume": True}, "workdir"),
  ],
)
def test_wrong_options_are_named(options, line):
  with pytest.raises(ValueError, match=line):
    lco_jax.train(**{"environment": "probe:credit", **_SHORT, **options})


def test_wrong_directories_are_named(control, language, tmp_path):
  where, done = control
  with pytest.raises(ValueError, match="already in use"):
    lco_jax.train("probe:credit", workdir=where, **_SHORT)
  with pytest.raises(ValueError, match="no config.json"):
    lco_jax.load_policy(tmp_path)
  with pytest.raises(ValueError, match="seeds 0 to 1"):
    lco_jax.load_policy(where, 2)
  done.policies[0].save(tmp_path / "one")
  with pytest.raises(ValueError, match="leave seed and best out"):
    lco_jax.load_policy(tmp_path / "one", 0)
  with pytest.raises(ValueError, match="already in use"):
    done.policies[0].save(tmp_path / "one")
  # Parameters of another policy beside the settings of this one.
  language[1].policies[0].save(tmp_path / "two")
  (tmp_path / "two" / "config.json").write_text(
    (tmp_path / "one" / "config.json").read_text()
  )
  with pytest.raises(ValueError, match="does not hold the arrays"):
    lco_jax.load_policy(tmp_path / "two")
  with pytest.raises(ValueError, match="leave seed and best out"):
    lco_jax.load_policy(tmp_path / "one", best=True)
  with pytest.raises(ValueError, match="want an object, .*'CartPole-v1'"):
    lco_jax.load_policy(where, environment="CartPole-v1")
  with pytest.raises(ValueError, match=r"shape \[\.\.\., "):
    done.policies[0].logits(np.ones(17))
  with pytest.raises(ValueError, match="no token for"):
    language[1].policies[0].complete(["x"])


def test_a_policy_of_the_host_is_read(tmp_path):
  options = _SHORT | {"num_seeds": 1, "total_steps": 128}
  done = lco_jax.train(
    "gymnasium:CartPole-v1", workdir=tmp_path / "run", **options
  )
  read = lco_jax.load_policy(tmp_path / "run")
  observation = np.ones((3, 4))
  np.testing.assert_array_equal(
    read.logits(observation), done.policies[0].logits(observation)
  )


def test_an_environment_object_takes_no_bins():
  with pytest.raises(ValueError, match="action_bins: for ids"):
    lco_jax.train(environments.make("CartPole-v1"), action_bins=3)


def test_a_small_model_answers_line_by_line(language, tmp_path):
  where, done = language
  prompt = done.summary["evaluation"]["examples"][0][0]
  for flags, line in (
    (["--chat"], "--chat is for pretrained models"),
    (["--num_samples=2", "--temperature=1"], "--num_samples does not go with"),
  ):
    wrong = scripts.run("generate", f"--model={where}", "--interactive", *flags)
    assert wrong.returncode == 2
    assert line in wrong.complaint
  (tmp_path / "in.jsonl").write_text(json.dumps({"text": prompt}) + "\n")
  done.policies[0].save(tmp_path / "saved")
  ran = scripts.run(
    "generate",
    f"--model={tmp_path / 'saved'}",
    f"--prompts={tmp_path / 'in.jsonl'}",
    f"--out={tmp_path / 'out.jsonl'}",
  )
  assert ran.returncode == 0, ran.stderr
  row = json.loads((tmp_path / "out.jsonl").read_text())
  assert row["greedy_text"] == lco_jax.load_policy(where).complete([prompt])[0]


def test_a_changed_built_in_environment_is_evaluated_itself(tmp_path):
  """Not in Gymnasium's original of the same name."""
  built_in = environments.make("CartPole-v1")

  def step(key, state, action):
    found = built_in.step(key, state, action)
    return found._replace(reward=10 * found.reward)

  changed = dataclasses.replace(built_in, step=step)
  where = tmp_path / "run"
  done = lco_jax.train(changed, workdir=where, **_SHORT)
  assert done.summary["evaluation"]["backend"] == "in-graph"
  assert min(done.summary["evaluation"]["per_seed"]) >= 80.0  # Of 8 steps.
  with pytest.raises(ValueError, match="own:CartPole-v1: .* environment="):
    lco_jax.load_policy(where)
  read = lco_jax.load_policy(where, environment=changed)
  np.testing.assert_array_equal(
    read.logits(np.ones(4)), done.policies[0].logits(np.ones(4))
  )


def test_texts_in_place_of_lists_are_refused(language):
  policy = language[1].policies[0]
  assert policy.complete([]) == []
  with pytest.raises(ValueError, match="want a list of texts"):
    policy.complete("123>")
  assert len(repr(policy)) < 200
