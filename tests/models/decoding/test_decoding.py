"""Writing replies: with a cache as without, whoever else is written to."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from commentree.models.decoding import decoding
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests, small_models

LENGTH = 6
START, END = 1, 2


class Uncached:
  """Log probabilities of the next token by reading a whole text anew, each alone."""

  def __init__(self, model, params, batch):
    self._params, self._batch = params, batch
    self._logits = jax.jit(model.logits, compiler_options=forests.QUICK_COMPILE)
    self._found = {}

  def __call__(self, example, target, text):
    """Returns `[V]`, given the tokens of a reply so far."""
    key = (example, target, *text)
    if key not in self._found:
      self._found[key] = self._log_probs(example, target, text)
    return self._found[key].copy()

  def _log_probs(self, example, target, text):
    tokens = [START, *text]
    batch = {name: x[example : example + 1] for name, x in self._batch.items()}
    decoder = np.zeros((1, 1, LENGTH), np.int32)
    for name in ("input_tokens", "segment_ids", "positions"):
      batch[f"decoder_{name}"] = decoder.copy()
    batch["decoder_input_tokens"][0, 0, : len(tokens)] = tokens
    batch["decoder_segment_ids"][0, 0, : len(tokens)] = target + 1
    batch["decoder_positions"][0, 0, : len(tokens)] = np.arange(len(tokens))
    batch["decoder_masked_positions"] = np.full((1, 1, 1), len(tokens) - 1)
    batch["target_prefix_lengths"] = np.zeros_like(batch["target_depths"])
    logits = np.float64(self._logits(self._params, batch))[0, 0, 0]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def greedy(next_log_probs, never=(), first=()):
  """Returns a text, with its end, and its log probability."""
  text, total = [], 0.0
  while len(text) < LENGTH and text[-1:] != [END]:
    log_probs = next_log_probs(text)
    log_probs[list(never)] = -np.inf
    if len(text) < len(first) and first[len(text)] >= 0:
      text.append(first[len(text)])
    else:
      text.append(int(log_probs.argmax()))
      total += log_probs[text[-1]]
  return text, total


def beam(next_log_probs, width, penalty):
  """Returns texts and log probabilities, best first: those that end, then others."""

  def score(text, total):
    return total / ((5 + len(text)) / 6) ** penalty

  live, finished = [([], 0.0)], []
  for _ in range(LENGTH):
    continued = [
      ([*text, token], total + log_prob)
      for text, total in live
      for token, log_prob in enumerate(next_log_probs(text))
    ]
    continued.sort(key=lambda pair: -pair[1])
    finished += [pair for pair in continued[:width] if pair[0][-1] == END]
    finished.sort(key=lambda pair: -score(*pair))
    if len(finished) >= width:
      return finished
    live = [pair for pair in continued if pair[0][-1] != END][:width]
  return [*finished, *live]


def written(replies, *place):
  """Returns a text with its end, as `greedy` has it."""
  length = int(replies.lengths[place])
  tokens = replies.tokens[place]
  assert (tokens[length:] == END).all()
  assert bool(replies.ended[place]) == (length < LENGTH)
  return tokens[: length + int(length < LENGTH)].tolist()


@functools.cache
def generate_of(model):
  """Returns the compiled `generate`, with replies as arrays of NumPy."""
  compiled = jax.jit(
    model.generate, static_argnums=2, compiler_options=forests.QUICK_COMPILE
  )
  return lambda *arguments, **named: jax.device_get(compiled(*arguments, **named))


def configured(method, **settings):
  return DecodingConfig(START, END, LENGTH, method, **settings)


@pytest.fixture(autouse=True)
def no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(scope="module")
def thread(packed):
  """Two forests without their decoder's side; one target sees nothing above it."""
  batch = {n: x[:2] for n, x in packed.batch.items() if not n.startswith("decoder_")}
  batch["ancestor_slots"] = batch["ancestor_slots"].copy()
  batch["ancestor_slots"][0, 1] = 0
  return batch


SHRINK = {"bias": 9, "logits_bias": 9, "type_embedding": 9, "position_embedding": 9}
# Family, whether layers are scanned, positions of ancestors, vectors per comment, and
# whether there is a pointer and a table of causal positions.
PLAIN = ("t5", False, "relative_bias", 1, True)
SCANNED = ("t5", True, "distance", 2, False)
ROBERTA = ("roberta", False, "none", 1, True)
SCANNED_ROBERTA = ("roberta", True, "depth", 1, False)


def variants(*quick):
  """Parametrizes by variants; all but some are slow."""
  return pytest.mark.parametrize(
    "variant",
    [
      pytest.param(v, marks=() if v in quick else pytest.mark.slow)
      for v in (PLAIN, SCANNED, ROBERTA, SCANNED_ROBERTA)
    ],
    ids=lambda v: f"{v[0]}-{'scanned' if v[1] else 'unrolled'}",
  )


@pytest.fixture(scope="module")
def build(make, thread):
  """Returns (variant) -> model, parameters, predictions without a cache; cached."""

  @functools.cache
  def built(variant):
    name, scan_layers, positions, many, pointer = variant
    model, params = make(
      **small_models.FAMILIES[name],
      scan_layers=scan_layers,
      ancestor_positions=positions,
      vectors_per_comment=many,
      ancestor_pointer=pointer,
      causal_position_buckets=pointer,
      num_thread_layers=int(pointer),
    )
    params = shrunk(params, name)
    return model, params, Uncached(model, params, thread)

  return built


def shrunk(params, name):
  """Returns parameters by which a model writes different texts."""
  # Texts would be the same in all threads if biases, and what all tokens share,
  # were as large as all else; and in all of a beam if the logits of a tied table were
  # as sure.
  shrink = SHRINK | ({"embedding": 2} if name == "roberta" else {})
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x / shrink.get(path[-1].key, 1), params
  )


def places(thread):
  """Yields forests and targets, those without ancestors among them."""
  targets = [
    int((x > 0).any(-1).nonzero()[0][-1]) + 1 for x in thread["ancestor_slots"]
  ]
  numbers = {int(n) for x in thread["ancestor_slots"] for n in (x > 0).sum(-1)}
  assert numbers >= {0, 1, 2}
  return [(b, t) for b, number in enumerate(targets) for t in range(number)]


@pytest.mark.long
@variants(PLAIN, SCANNED_ROBERTA)
def test_greedy_with_a_cache_is_greedy_without(variant, build, thread):
  model, params, uncached = build(variant)
  replies = generate_of(model)(params, thread, configured("greedy"))
  texts = set()
  for place in places(thread):
    text, total = greedy(functools.partial(uncached, *place))
    assert written(replies, *place, 0) == text
    np.testing.assert_allclose(
      replies.log_probabilities[place], [total], rtol=1e-5, atol=1e-5
    )
    texts.add(tuple(text))
  assert len(texts) >= 3, "texts of one kind would not tell ancestors apart"


@pytest.mark.long
@variants(PLAIN, SCANNED)
def test_a_beam_with_a_cache_is_a_beam_without(variant, build, thread):
  model, params, uncached = build(variant)
  config = configured("beam", beam_width=3, num_replies=2, length_penalty=0.8)
  replies = generate_of(model)(params, thread, config)
  reordered = False
  for place in places(thread):
    found = beam(functools.partial(uncached, *place), 3, 0.8)
    for k, (text, total) in enumerate(found[:2]):
      assert written(replies, *place, k) == text
      np.testing.assert_allclose(
        replies.log_probabilities[*place, k], total, rtol=1e-5, atol=1e-5
      )
    best = greedy(functools.partial(uncached, *place))[0]
    reordered |= found[0][0] != best
  assert reordered, "beams that always keep their order would not test the cache's"


@pytest.fixture(scope="module")
def sampled(build):
  """What a sampling model writes: (batch, identities, first tokens, …) -> Replies."""
  model, params, uncached = build(PLAIN)
  config = configured("sample", num_replies=2, temperature=1.5, never=(0, START, 9))

  def write(batch, identities, **arguments):
    keys = decoding.reply_keys(7, identities)
    return generate_of(model)(params, batch, config, keys, **arguments)

  write.uncached = uncached  # type: ignore[attr-defined]
  return write


def identities_of(batch):
  return np.arange(batch["target_depths"].size).reshape(
    *batch["target_depths"].shape, 1
  )


@pytest.mark.long
@pytest.mark.parametrize(
  "order", [[1, 0], pytest.param([1, 0, 1], marks=pytest.mark.slow)]
)
def test_a_reply_is_the_same_wherever_it_stands_and_whoever_else_is_answered(
  sampled, thread, order
):
  identities = identities_of(thread)
  replies = sampled(thread, identities)
  assert len(np.unique(replies.tokens.reshape(-1, LENGTH), axis=0)) > 10

  # Forests in another order, or in a larger batch; targets the other way round.
  moved = {name: values[order] for name, values in thread.items()}
  for name in ("ancestor_slots", "ancestor_distances", "target_depths"):
    moved[name] = moved[name][:, ::-1]
  again = sampled(moved, identities[order][:, ::-1])
  np.testing.assert_array_equal(again.tokens, replies.tokens[order][:, ::-1])

  # Another tree in the other forest, and another thread above another target.
  changed = {name: values.copy() for name, values in thread.items()}
  changed["encoder_input_tokens"][0] ^= 1
  changed["ancestor_slots"][1, 2:] = 0
  again = sampled(changed, identities)
  np.testing.assert_array_equal(again.tokens[1, :2], replies.tokens[1, :2])
  assert (again.tokens[0] != replies.tokens[0]).any()
  assert (again.tokens[1, 2:] != replies.tokens[1, 2:]).any()


@pytest.mark.long
def test_what_is_sampled_has_its_log_probability_and_nothing_excluded(sampled, thread):
  replies = sampled(thread, identities_of(thread))
  for place in places(thread):
    for k in range(2):
      text = written(replies, *place, k)
      total = sum(sampled.uncached(*place, text[:i])[t] for i, t in enumerate(text))
      np.testing.assert_allclose(
        replies.log_probabilities[*place, k], total, rtol=1e-5, atol=1e-5
      )
      assert not {0, START, 9} & set(text)
  first, second = (replies.tokens[:, :, k] for k in range(2))
  assert (first != second).any(-1).mean() > 0.9


def test_other_identities_and_other_seeds_have_other_keys():
  identities = np.array([[[1, 2], [2, 1]], [[1, 2], [0, 0]]])
  keys, others = (
    np.asarray(jax.random.key_data(decoding.reply_keys(seed, identities)))
    for seed in (0, 1)
  )
  assert (keys[0, 0] == keys[1, 0]).all()
  different = np.concatenate([keys.reshape(4, -1)[[0, 1, 3]], others[0]])
  assert len(np.unique(different, axis=0)) == 5


@pytest.mark.long
def test_forced_tokens_begin_a_reply_and_nobody_waits_for_unwanted_ones(
  build, thread, monkeypatch
):
  model, params, uncached = build(PLAIN)
  shape = thread["target_depths"].shape
  wanted = np.zeros(shape, bool)
  wanted[1, :2] = True
  first = np.full((*shape, 3), decoding.FREE)
  first[1, 0] = 9, decoding.FREE, 8
  # The second ends at once: the loop, and not before.
  first[1, 1, 0] = END
  steps = []
  advance = decoding.TokenSampler.advance

  def counted(self, texts, log_probs, position):
    jax.debug.callback(lambda at: steps.append(int(at)), position)
    return advance(self, texts, log_probs, position)

  monkeypatch.setattr(decoding.TokenSampler, "advance", counted)
  write = generate_of.__wrapped__(model)
  config = configured("greedy", never=(9,))
  replies = write(params, thread, config, wanted=wanted, first_tokens=first)
  text, total = greedy(functools.partial(uncached, 1, 0), (9,), first[1, 0])
  assert written(replies, 1, 0, 0) == text
  np.testing.assert_allclose(
    replies.log_probabilities[1, 0], [total], rtol=1e-5, atol=1e-5
  )
  assert replies.lengths[1, 1:].max() == 0
  assert replies.lengths[0].max() == 0
  assert replies.log_probabilities[~wanted].max() == 0
  assert sorted(steps) == list(range(len(text)))


def test_t5x_predicts_replies_in_place_of_the_targets_if_so_asked(packed, monkeypatch):
  config = configured("sample", temperature=2.0)
  model = CommentTreeModel(small_models.CONFIG, decoding_config=config)
  shape = packed.batch["target_depths"].shape
  given = {}

  def generate(params, batch, config, keys, *, wanted):
    given.update(params=params, config=config, keys=keys, wanted=wanted)
    tokens = np.zeros((*shape, 1, LENGTH), np.int32)
    return decoding.Replies(tokens, tokens[..., 0] - 1.5, None, None)

  monkeypatch.setattr(model, "generate", generate)
  tokens, aux = model.predict_batch_with_aux("params", packed.batch, jax.random.key(3))
  assert (tokens.shape, aux["scores"].shape) == ((*shape, 1, LENGTH), (*shape, 1))
  assert (given["params"], given["config"]) == ("params", config)
  numbers = packed.batch["decoder_segment_ids"].max(axis=(1, 2))
  np.testing.assert_array_equal(given["wanted"].sum(-1), numbers)
  assert (given["wanted"][:, 0] == (numbers > 0)).all()
  keys = jax.random.key_data(given["keys"]).reshape(shape[0] * shape[1], -1)
  assert len(np.unique(keys, axis=0)) == len(keys)
  others = model.predict_batch("params", packed.batch, jax.random.key(4))
  assert others.shape == tokens.shape
  assert (jax.random.key_data(given["keys"]).reshape(keys.shape) != keys).any()
