from __future__ import annotations

import itertools

import numpy as np
import pytest

from commentree.models.conditions import apply_condition
from commentree.tests.support.models import forests
from commentree.training import partitioning
from commentree.training.config import PartitioningConfig
from commentree.training.metrics import bags_of_words
from commentree.training.metrics.unigram import Unigram

VOCAB = 12
UNIGRAM = Unigram.of_counts(np.arange(VOCAB))
WEIGHTS = np.array([[0.7, 0.3, 0], [0.5, 0.2, 0.3], [0.6, 0.2, 0.2], [0.6, 0.3, 0.1]])


pytestmark = pytest.mark.usefixtures("strict_shapes")


@pytest.fixture(scope="module")
def drawn_and_batch():
  rng = np.random.default_rng(0)
  layout = forests.Layout(12, 16, slots=20, targets=24)
  drawn = [
    forests.random_forest(rng, sizes, (1, 3, 8), VOCAB, first_tree=first)
    for first, sizes in ((1, (9, 3)), (3, (5, 5)))
  ]
  return drawn, forests.batch_of(*(forests.pack(each, layout) for each in drawn))


def by_hand(drawn, batch, condition):
  """Loss of each masked token, one at a time, from the comments' words."""
  shown = {name: np.asarray(x) for name, x in apply_condition(batch, condition).items()}
  row = bags_of_words.BAGS.index(condition)
  result = np.zeros((*batch["decoder_loss_weights"].shape, 2))
  for example, forest in enumerate(drawn):
    slots = shown["encoder_segment_ids"][example]
    read = shown["encoder_input_tokens"][example]
    for comment in forest:
      if not comment.is_target:
        continue
      own = [t for p, t in enumerate(comment.tokens) if p not in comment.masked]
      above = []
      for slot in shown["ancestor_slots"][example, comment.target - 1]:
        above += read[slots == slot].tolist() if slot else []
      for r, m in np.argwhere(forests.masked_of(batch, example, comment.target)):
        token = batch["decoder_target_tokens"][example, r, m]
        frequency = float(np.exp(UNIGRAM.log_probabilities[token]))
        in_own = own.count(token) / len(own) if own else frequency
        alone = WEIGHTS[0] @ [frequency, in_own, 0]
        mixed = alone
        if above:
          mixed = WEIGHTS[row] @ [frequency, in_own, above.count(token) / len(above)]
        result[example, r, m] = -np.log(alone), -np.log(mixed)
  return result


@pytest.mark.parametrize("condition", bags_of_words.CONDITIONS)
def test_losses_are_those_of_counting_words_one_by_one(drawn_and_batch, condition):
  drawn, batch = drawn_and_batch
  expected = by_hand(drawn, batch, condition)
  found = bags_of_words.losses(batch, UNIGRAM, WEIGHTS.astype(np.float32), (condition,))
  used = batch["decoder_loss_weights"] > 0
  assert len(found) == len(bags_of_words.names((condition,))) == 2
  for number, loss in enumerate(found):
    np.testing.assert_allclose(
      np.asarray(loss)[used], expected[used][:, number], rtol=1e-5
    )
  # Some comments have no ancestor, some no visible word.
  assert 0 < np.mean(expected[used][:, 0] == expected[used][:, 1]) < 1


def test_losses_come_in_the_order_of_their_names(drawn_and_batch):
  _, batch = drawn_and_batch
  weights = WEIGHTS.astype(np.float32)
  conditions = ("shuffled", "true")
  assert bags_of_words.names(conditions) == ["bag_own", "bag_true", "bag_shuffled"]
  together = bags_of_words.losses(batch, UNIGRAM, weights, conditions)
  for number, condition in ((1, "true"), (2, "shuffled")):
    alone = bags_of_words.losses(batch, UNIGRAM, weights, (condition,))[1]
    np.testing.assert_array_equal(together[number], alone)


def made_up_tokens(rng, weights, count=20_000):
  """Draws which part each token is from, and what the parts say of it."""
  unigram = rng.uniform(0.01, 0.1, count)
  found = rng.uniform(0, 0.2, (count, 4))
  part = rng.choice(3, count, p=weights)
  # A part that a token is from tells it; the chance of telling is what makes it likely.
  unigram[part == 0] = 0.9
  found[part == 1, 0] = 0.9
  found[part == 2, 1] = 0.9
  return unigram, found


def log_likelihood(parts, weights):
  return np.log(np.asarray(weights) @ parts).mean()


def test_no_other_weights_make_the_tokens_likelier():
  rng = np.random.default_rng(0)
  unigram, found = made_up_tokens(rng, [0.5, 0.2, 0.3])
  fitted = bags_of_words.fit(unigram, found)
  assert fitted.shape == (4, 3)
  np.testing.assert_allclose(fitted.sum(axis=1), 1)
  assert fitted[0, 2] == 0
  for row in (1, 2, 3):
    parts = np.stack([unigram, found[:, 0], found[:, row]])
    best = log_likelihood(parts, fitted[row])
    for a, b in itertools.product(np.linspace(0.02, 0.96, 30), repeat=2):
      if a + b < 1:
        assert log_likelihood(parts, [1 - a - b, a, b]) <= best + 1e-7
  assert fitted[1] == pytest.approx([0.5, 0.2, 0.3], abs=0.1)


def test_a_part_that_tells_nothing_gets_no_weight():
  rng = np.random.default_rng(1)
  unigram, found = made_up_tokens(rng, [0.6, 0.4, 0])
  found[:, 3] = 0.5 * unigram
  assert bags_of_words.fit(unigram, found)[3, 2] < 1e-3


def test_mixtures_are_fitted_on_the_tokens_that_they_are_used_for():
  rng = np.random.default_rng(2)
  unigram, found = made_up_tokens(rng, [0.5, 0.2, 0.3])
  seen = rng.random(len(unigram)) < 0.5
  found[~seen, 1] = -1
  both = bags_of_words.fit(unigram, found)
  np.testing.assert_array_equal(
    both[1], bags_of_words.fit(unigram[seen], found[seen])[1]
  )
  found[:, 1] = -1
  none = bags_of_words.fit(unigram, found)
  np.testing.assert_array_equal(none[1], none[0])


def test_without_tokens_there_are_weights_all_the_same():
  fitted = bags_of_words.fit(np.zeros(0), np.zeros((0, 4)))
  np.testing.assert_allclose(fitted.sum(axis=1), 1)
  assert (fitted[:, 0] > 0).all()


def test_batches_are_fitted_as_their_tokens_are(drawn_and_batch):
  _, batch = drawn_and_batch
  mesh = partitioning.make_mesh(PartitioningConfig())
  fitter = bags_of_words.Fitter(mesh, PartitioningConfig())
  # Over as many devices as there are.
  whole = {name: np.concatenate([x] * 4) for name, x in batch.items()}
  fitted = fitter(np.arange(VOCAB), iter([whole, whole]))
  used = whole["decoder_loss_weights"] > 0
  frequencies = np.exp(UNIGRAM.log_probabilities[whole["decoder_target_tokens"]])
  found = np.asarray(bags_of_words.shares(whole, bags_of_words.CONDITIONS))
  expected = bags_of_words.fit(frequencies[used], found[used])
  np.testing.assert_allclose(fitted, expected, atol=1e-4)
  np.testing.assert_array_equal(fitted, fitter(np.arange(VOCAB), iter([whole, whole])))
