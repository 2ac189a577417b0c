"""Sampling's choice of tokens and beam search, on tables in place of a model."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.models.decoding import sampling
from commentree.models.decoding.beam_search import BeamSearch
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.models.decoding.sampling import TokenSampler
from commentree.tests.support.models import forests

VOCABULARY = 3
LENGTH = 4
START, END = 1, 0
NUM_TABLES = 40


class Tables:
  """Log probabilities of the next token after every text, of many languages."""

  def __init__(self):
    rng = np.random.default_rng(3)
    texts = itertools.chain.from_iterable(
      itertools.product(range(VOCABULARY), repeat=n) for n in range(LENGTH)
    )
    self._rows = {text: i for i, text in enumerate(texts)}
    scores = rng.normal(0, 1.5, (NUM_TABLES, len(self._rows), VOCABULARY))
    totals = np.log(np.exp(scores).sum(-1, keepdims=True))
    self.log_probs = np.float32(scores - totals)

  def next(self, tokens_QWL, position):
    """Returns log probabilities after texts of `position` tokens, `[Q * W, V]`."""
    rows = [
      [self._rows[tuple(text[:position])] for text in beam.tolist()]
      for beam in np.asarray(tokens_QWL)
    ]
    return self.log_probs[np.arange(NUM_TABLES)[:, None], rows].reshape(-1, VOCABULARY)

  def all_texts(self, table):
    """Yields every text, with its end if it has one, and its log probability."""
    for text in itertools.product(range(VOCABULARY), repeat=LENGTH):
      if END in text:
        end = text.index(END)
        if any(text[end:]):
          continue
        text = text[: end + 1]
      steps = (self.log_probs[table, self._rows[text[:i]]] for i in range(len(text)))
      yield text, float(sum(step[token] for token, step in zip(text, steps)))


@pytest.fixture(scope="module")
def tables():
  return Tables()


def configured(method, **settings):
  return DecodingConfig(START, END, LENGTH, method, **settings)


def run(method, tables):
  """Returns texts with their ends `[Q][K]`, log probabilities, and all states."""
  states = [state := method.begin(np.zeros(NUM_TABLES, bool))]
  advance = jax.jit(method.advance, compiler_options=forests.QUICK_COMPILE)
  for position in range(LENGTH):
    texts = state[0].reshape(NUM_TABLES, -1, LENGTH)
    state, _, _ = advance(state, tables.next(texts, position), position)
    states.append(state)
  tokens, log_probs = (np.asarray(x) for x in method.replies(state))
  cut = [[t[: (*t.tolist(), END).index(END) + 1] for t in beam] for beam in tokens]
  return [[tuple(t.tolist()) for t in beam] for beam in cut], log_probs, states


@pytest.mark.long
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_a_beam_that_holds_all_texts_finds_the_best(tables, penalty):
  config = configured(
    "beam", beam_width=VOCABULARY**LENGTH, num_replies=50, length_penalty=penalty
  )
  texts, log_probs, _ = run(BeamSearch(config), tables)
  lengths = set()
  for table in range(NUM_TABLES):
    ranked = sorted(
      tables.all_texts(table),
      key=lambda pair: (
        END not in pair[0],
        -pair[1] / ((5 + len(pair[0])) / 6) ** penalty,
      ),
    )
    assert len(ranked) == 31
    assert texts[table][:31] == [text for text, _ in ranked]
    np.testing.assert_allclose(
      log_probs[table], [x for _, x in ranked] + 19 * [-np.inf], rtol=1e-5
    )
    lengths.add(len(texts[table][0]))
  assert len(lengths) >= 3


@pytest.mark.long
@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_a_beam_of_one_is_greedy(tables, penalty):
  texts, log_probs, _ = run(TokenSampler(configured("greedy"), None), tables)
  config = configured("beam", beam_width=1, length_penalty=penalty)
  beam_texts, beam_log_probs, _ = run(BeamSearch(config), tables)
  assert beam_texts == texts
  np.testing.assert_allclose(beam_log_probs, log_probs, rtol=1e-6)
  assert {len(text) for (text,) in texts} >= {1, 2, 3, LENGTH}
  assert any(END not in text for (text,) in texts)


class Restless(BeamSearch):
  """A search that is never over."""

  def advance(self, beams, log_probs, position):
    beams = beams._replace(settled_Q=np.zeros(NUM_TABLES, bool))
    return super().advance(beams, log_probs, position)


def test_a_search_is_over_once_nothing_better_can_be_found(tables):
  # So much for length that texts may win that are still behind.
  config = configured("beam", beam_width=8, num_replies=1, length_penalty=2.0)
  texts, _, states = run(BeamSearch(config), tables)
  restless_texts, _, restless_states = run(Restless(config), tables)
  # Of these searches it is not the number of finished texts that ends them.
  few = np.isfinite(restless_states[-2].scores_QW).sum(-1) < config.beam_width
  early = few & np.asarray(states[-2].settled_Q)
  assert early.sum() > NUM_TABLES / 4
  assert not early.all()
  for table in early.nonzero()[0]:
    assert texts[table] == restless_texts[table]


def expected_tokens(log_probs, top_k, top_p):
  """The tokens to draw among, found one at a time; None if too close to call."""
  order = sorted(range(len(log_probs)), key=lambda token: (-log_probs[token], token))
  order = order[: top_k or len(order)]
  shares = np.exp(np.float64(log_probs)[order])
  shares /= shares.sum()
  kept, total = [], 0.0
  for token, share in zip(order, shares):
    kept.append(token)
    total += share
    if abs(total - top_p) < 1e-5 and top_p < 1:
      return None
    if total >= top_p:
      break
  return order if top_p == 1 else kept


@functools.cache
def likeliest_of(top_k):
  return jax.jit(lambda x, top_p: sampling.top_k_top_p(x, top_k, top_p))


@hypothesis.given(
  # Few values, so that many are equal.
  scores=st.lists(st.integers(-12, 0), min_size=7, max_size=7),
  top_k=st.sampled_from([0, 3, 9]),
  top_p=st.floats(0.01, 1) | st.just(1.0),
)
def test_the_likeliest_tokens_are_kept_and_no_others(scores, top_k, top_p):
  log_probs = np.float32(scores) / 2
  expected = expected_tokens(log_probs, top_k, top_p)
  hypothesis.assume(expected is not None)
  values, tokens, kept = (
    np.asarray(x)[0] for x in likeliest_of(top_k)(log_probs[None], np.float32(top_p))
  )
  assert tokens[kept].tolist() == expected
  np.testing.assert_array_equal(values, log_probs[tokens])


def test_tokens_are_drawn_as_often_as_they_are_likely():
  log_probs = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
  rows = 4000
  keys = jax.random.split(jax.random.key(0), rows)

  def frequencies(**settings):
    config = configured("sample", **settings)
    draw = jax.jit(
      lambda keys, log_probs: sampling.sample(keys, log_probs, config),
      compiler_options=forests.QUICK_COMPILE,
    )
    return np.bincount(draw(keys, np.tile(log_probs, (rows, 1))), minlength=4) / rows

  np.testing.assert_allclose(frequencies(), [0.4, 0.3, 0.2, 0.1], atol=0.03)
  np.testing.assert_allclose(
    frequencies(top_p=0.6, temperature=0.5), [16 / 25, 9 / 25, 0, 0], atol=0.03
  )
  hot = np.array([0.4, 0.3, 0.2]) ** 0.5
  np.testing.assert_allclose(
    frequencies(top_k=3, temperature=2.0), [*hot / hot.sum(), 0], atol=0.03
  )


def test_each_token_of_a_text_is_drawn_anew():
  rows, size = 3000, 3
  keys = jax.random.split(jax.random.key(1), rows)
  drawing = TokenSampler(configured("sample", num_replies=1, never=()), keys)
  uniform = np.full((rows, 4), -np.log(4), np.float32)
  uniform[:, END] = -np.inf
  state = drawing.begin(np.zeros(rows, bool))
  advance = jax.jit(drawing.advance, compiler_options=forests.QUICK_COMPILE)
  first, second = [], []
  for position, drawn in enumerate((first, second)):
    state, tokens, _ = advance(state, uniform, position)
    drawn.extend(np.asarray(tokens) - 1)
  counts = np.zeros((size, size))
  np.add.at(counts, (first, second), 1)
  np.testing.assert_allclose(counts / rows, 1 / size**2, atol=0.02)


@pytest.mark.parametrize(
  ("settings", "field"),
  [
    ({"max_length": 0}, "max_length"),
    ({"method": "beams"}, "method"),
    ({"method": "sample", "temperature": 0}, "temperature"),
    ({"method": "sample", "top_p": 1.1}, "top_p"),
    ({"method": "sample", "top_k": 2.5}, "top_k"),
    ({"method": "beam", "length_penalty": -1}, "length_penalty"),
    ({"method": "beam", "num_replies": 5}, "beam_width = 4"),
    ({"num_replies": 2}, "num_replies"),
    ({"top_k": 5}, "top_k = 5: has no effect"),
    ({"never": (3, END)}, "never has 0, which is end_id"),
    ({"never": [-1]}, "never"),
  ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(settings, field):
  with pytest.raises(UserError, match=f"DecodingConfig.*{field}"):
    DecodingConfig(START, END, **settings)


def test_an_id_beyond_the_vocabulary_is_refused_by_its_name():
  with pytest.raises(UserError, match=r"DecodingConfig\.never = 12"):
    DecodingConfig(START, END, never=[3, 12]).check_vocabulary(12)
  with pytest.raises(UserError, match=r"DecodingConfig\.end_id = 9"):
    DecodingConfig(START, 9).check_vocabulary(9)
