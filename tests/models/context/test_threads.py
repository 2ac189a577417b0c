"""The concatenated-thread model: what it reads of a packed batch, and what it computes.

Against `naive`, which reads one thread at a time, and by changing one comment a time.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from commentree.errors import UserError
from commentree.models.conditions import apply_condition
from commentree.models.config import ModelConfig
from commentree.models.context import threads
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.tests.support.models import forests, naive, slopes, small_models

# Shorter than the longest threads, so that some are cut.
LENGTH = 11


pytestmark = pytest.mark.usefixtures("strict_shapes")


def concatenated(make, **changes):
  """Returns a model that reads threads, and its parameters."""
  return make(context="concatenated", max_context_tokens=LENGTH, **changes)


def thread_of(forest, comment):
  """Returns (ancestor, token) of each token of a comment's thread."""
  tokens = [(a, token) for a in comment.ancestors for token in forest[a].tokens]
  return tokens[:LENGTH]


def jitted(function):
  return jax.jit(function, compiler_options=forests.QUICK_COMPILE)


def test_threads_are_read_from_packed_rows_nearest_first_and_cut(packed):
  rows = threads.as_rows(packed.batch, LENGTH)
  found = threads.find(packed.batch, LENGTH)
  cut = 0
  for example, forest in enumerate(packed.forests):
    for comment in (c for c in forest if c.is_target):
      target = comment.target - 1
      expected = thread_of(forest, comment)
      padded = [token for _, token in expected] + [0] * (LENGTH - len(expected))
      assert rows["encoder_input_tokens"][example, target].tolist() == padded
      in_use = [1] * len(expected) + [0] * (LENGTH - len(expected))
      assert rows["encoder_segment_ids"][example, target].tolist() == in_use
      assert rows["encoder_positions"][example, target].tolist() == [*range(LENGTH)]
      order = found.ancestor_BTC[example, target, : len(expected)]
      assert [comment.ancestors[i] for i in order] == [a for a, _ in expected]
      cut += sum(len(forest[a].tokens) for a in comment.ancestors) > LENGTH
  assert cut > 0
  unused = np.ones(rows["encoder_segment_ids"].shape[:2], bool)
  for example, forest in enumerate(packed.forests):
    unused[example, [c.target - 1 for c in forest if c.is_target]] = False
  assert not rows["encoder_segment_ids"][unused].any()


def naive_loss_sum(params, forest, cfg):
  """Returns the loss of a forest's targets, each with its thread alone."""
  total = 0.0
  for comment in (c for c in forest if c.is_target):
    thread = thread_of(forest, comment)
    seen, pointed = [], []
    if thread:
      text = dataclasses.replace(comment, tokens=[token for _, token in thread])
      states = naive.encode(params, text, cfg)
      for a, distance in zip(comment.ancestors, comment.distances):
        own = [state for state, (of, _) in zip(states, thread) if of == a]
        seen.append((own, distance, forest[a].depth))
        if own:
          tokens = [token for of, token in thread if of == a]
          pointed.append((tokens, np.stack(own), distance))
    masked = forests.masked_tokens(comment)
    total += naive.loss_of_target(params, comment, masked, seen, pointed, cfg)
  return total


@pytest.mark.parametrize(
  ("family", "positions", "pointer"),
  [
    ("t5", "relative_bias", True),
    ("roberta", "distance", False),
    ("bert", "depth", True),
  ],
)
def test_a_packed_batch_has_the_loss_and_gradients_of_threads_one_by_one(
  make, packed, family, positions, pointer
):
  model, params = concatenated(
    make,
    **small_models.FAMILIES[family],
    ancestor_positions=positions,
    ancestor_pointer=pointer,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  loss, gradients = jitted(
    jax.value_and_grad(lambda p: model.loss_sums(p, packed.batch, None)[0])
  )(params)

  def naive_loss(whole):
    return sum(naive_loss_sum(whole, f, model.config) for f in packed.forests)

  np.testing.assert_allclose(loss, slopes.of(naive_loss, params), rtol=1e-5)
  slopes.check(gradients, naive_loss, params)


@pytest.fixture(scope="module")
def logits_of(make, family):
  """Returns the jitted logits of a batch under a condition."""
  model, params = concatenated(make, **family)
  compiled = jitted(lambda batch: model.logits(params, batch))

  def logits(batch, condition="true"):
    return np.asarray(compiled(dict(apply_condition(batch, condition))))

  return logits


def changes_of(logits_of, packed, condition):
  """Yields (forest, i, j, change), see `forests.changes_of`, under a condition."""

  def under_condition(batch):
    return logits_of(batch, condition)

  return forests.changes_of(under_condition, packed.batch, packed.forests)


def test_a_target_depends_on_the_ancestors_in_its_thread_and_by_exactly_0_on_others(
  logits_of, packed
):
  seen = set()
  for forest, i, j, change in changes_of(logits_of, packed, "true"):
    is_read = i in {a for a, _ in thread_of(forest, forest[j])}
    assert (change > 1e-5) if is_read else (change == 0), (i, j, change)
    seen.add((i in forest[j].ancestors, is_read))
  # Ancestors, ancestors behind the cut, others.
  assert seen == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize("condition", ["true", "parent_only"])
def test_beside_the_nearest_tokens_ancestors_are_seen_and_by_exactly_0_others(
  make, packed, condition
):
  model, params = make(nearest_context_tokens=LENGTH)
  compiled = jitted(lambda batch: model.logits(params, batch))

  def logits(batch, condition):
    return np.asarray(compiled(dict(apply_condition(batch, condition))))

  for forest, i, j, change in changes_of(logits, packed, condition):
    hops = dict(zip(forest[j].ancestors, forest[j].distances)).get(i)
    is_seen = hops == 1 if condition == "parent_only" else hops is not None
    assert (change > 1e-5) if is_seen else (change == 0), (i, j, change)


def test_parent_only_depends_on_the_parent_alone(logits_of, packed):
  for forest, i, j, change in changes_of(logits_of, packed, "parent_only"):
    hops = dict(zip(forest[j].ancestors, forest[j].distances)).get(i)
    assert (change > 1e-5) if hops == 1 else (change == 0), (i, j, hops)


def test_none_depends_on_nothing_that_the_encoder_reads(logits_of, packed):
  other = {
    **packed.batch,
    "encoder_input_tokens": packed.batch["encoder_input_tokens"][:, ::-1] ^ 1,
  }
  without = logits_of(packed.batch, "none")
  np.testing.assert_array_equal(logits_of(other, "none"), without)
  assert np.abs(without - logits_of(packed.batch)).max() > 1e-4


def test_shuffled_depends_on_another_tree(logits_of, packed):
  before = logits_of(packed.batch, "shuffled")
  # All of the first example's trees; the second's targets read them, and no other.
  batch = {name: values.copy() for name, values in packed.batch.items()}
  batch["encoder_input_tokens"][0] ^= 1
  after = logits_of(batch, "shuffled")
  for comment in (c for c in packed.forests[1] if c.is_target and c.ancestors):
    masked = forests.masked_of(packed.batch, 1, comment.target)
    assert np.abs(after[1] - before[1])[masked].max() > 1e-5
  # Their own comments they do not read.
  batch = {name: values.copy() for name, values in packed.batch.items()}
  batch["encoder_input_tokens"][1] ^= 1
  after = logits_of(batch, "shuffled")
  used = packed.batch["decoder_loss_weights"][1] > 0
  np.testing.assert_array_equal(after[1][used], before[1][used])


def test_what_padding_holds_changes_nothing(logits_of, packed):
  forests.check_padding_is_unread(logits_of, packed.batch)


@pytest.mark.parametrize("head", ["masked_lm", "classification"])
def test_parameters_are_those_of_the_pooled_model(make, family, head):
  """So that warm starts, checkpoints and rules for names serve both."""
  changes = {**family, "head": head, "num_labels": 3 * (head != "masked_lm")}
  (_, pooled), (_, of_threads) = make(**changes), concatenated(make, **changes)
  assert jax.tree.map(np.shape, pooled) == jax.tree.map(np.shape, of_threads)


def test_scanned_and_rematerialized_layers_have_float32_gradients(make, packed):
  model, params = concatenated(
    make, scan_layers=True, remat_policy="minimal", dtype="bfloat16"
  )
  # Traced alone: compiling takes a quarter of a minute.
  gradients = jax.eval_shape(
    jax.grad(lambda p, key: model.loss_sums(p, packed.batch, key)[0]),
    params,
    jax.random.key(0),
  )
  assert jax.tree.map(lambda x: (x.shape, x.dtype), gradients) == jax.tree.map(
    lambda x: (x.shape, np.float32), params
  )


def test_diagnostics_count_the_tokens_that_read_a_thread(make, packed):
  model, params = concatenated(make)
  # Scores that are all alike spread the weights evenly.
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if path[-2].key == "query" or "bias" in path[-1].key else x,
    params,
  )
  found = jitted(lambda p: model.evaluate_batch(p, packed.batch, "true"))(params)
  targets = [(c, f) for f in packed.forests for c in f if c.is_target]
  above = [(c, thread_of(f, c)) for c, f in targets if c.ancestors]
  size = sum(len(c.tokens) for c, _ in targets)
  read = sum(len(c.tokens) for c, _ in above)
  noted = {name: np.asarray(x) for name, x in found["attention"].items()}
  layers = model.config.num_decoder_layers
  assert noted["tokens"].tolist() == [size] * layers
  assert noted["with_ancestors"].tolist() == [read] * layers
  np.testing.assert_allclose(noted["null_weight"], size - read, rtol=1e-5)
  most = sum(len(c.tokens) * np.log(len(thread)) for c, thread in above)
  np.testing.assert_allclose(noted["most_entropy"], most, rtol=1e-5)
  with_parent = sum(len(c.tokens) for c, _ in above if 1 in c.distances)
  assert noted["with_parent"].tolist() == [with_parent] * layers
  on_parent = sum(
    len(c.tokens) * sum(hops[a] == 1 for a, _ in thread) / len(thread)
    for c, thread in above
    for hops in [dict(zip(c.ancestors, c.distances))]
  )
  np.testing.assert_allclose(noted["parent_weight"], on_parent, rtol=1e-5)
  np.testing.assert_allclose(noted["entropy"], noted["most_entropy"], rtol=1e-5)
  assert (noted["update"] > 0).all()
  assert model.vector_sums(params, packed.batch) == {}


def test_the_encoder_s_positions_are_counted_as_it_reads_them(make, packed):
  model, params = concatenated(make)
  sums = jitted(lambda p: model.loss_sums(p, packed.batch, None)[2])(params)
  read = [len(thread_of(f, c)) for f in packed.forests for c in f if c.is_target]
  assert sums["encoder_tokens"] == sum(read)
  assert sums["encoder_positions"] == packed.batch["target_depths"].size * LENGTH


@pytest.mark.parametrize(
  "changes",
  [
    {"context": "concatenated", "max_context_tokens": LENGTH},
    {"nearest_context_tokens": LENGTH},
  ],
  ids=["concatenated", "nearest"],
)
def test_replies_are_written_given_the_thread(make, packed, changes):
  """As the whole text read anew gives them, greedily."""
  model, params = make(
    ancestor_positions="depth", num_encoder_layers=1, num_decoder_layers=1, **changes
  )
  config = DecodingConfig(start_id=1, end_id=2, max_length=4, num_replies=1)
  replies = jitted(lambda p: model.generate(p, packed.batch, config))(params)
  next_logits = jitted(lambda batch: model.logits(params, batch))
  for comment in [c for c in packed.forests[1] if c.is_target][:3]:
    text = []
    while len(text) < 4 and text[-1:] != [2]:
      batch = {name: values[1:2] for name, values in packed.batch.items()}
      row = np.zeros((1, 1, 4), np.int32)
      read = [1, *text]
      for name, values in (
        ("input_tokens", read),
        ("segment_ids", [comment.target] * len(read)),
        ("positions", range(len(read))),
      ):
        batch[f"decoder_{name}"] = row.copy()
        batch[f"decoder_{name}"][0, 0, : len(read)] = list(values)
      batch["decoder_masked_positions"] = np.full((1, 1, 1), len(text))
      batch["target_prefix_lengths"] = np.zeros_like(batch["target_depths"])
      text.append(int(np.asarray(next_logits(batch))[0, 0, 0].argmax()))
    written = replies.tokens[1, comment.target - 1, 0].tolist()
    assert written == text + [2] * (4 - len(text))


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"vectors_per_comment": 2}, "vectors_per_comment = 2"),
    ({"pooling": "attention"}, "pooling = 'attention'"),
    ({"max_context_tokens": 0}, "max_context_tokens = 0"),
    (
      {"family": "roberta", "num_positions": 130, "max_context_tokens": 129},
      "max_context_tokens = 129: must be at most 128",
    ),
    ({"context": "whole"}, "context = 'whole'"),
    ({"reply_matching_weight": 0.1}, "reply_matching_weight = 0.1"),
    ({"vectors_to_logits": True}, "vectors_to_logits = True"),
    ({"context": "none", "vectors_to_logits": True}, "vectors_to_logits = True"),
    ({"normalize_pooled_vectors": True}, "normalize_pooled_vectors = True"),
    ({"num_thread_layers": 2}, "num_thread_layers = 2"),
    (
      {"context": "none", "num_thread_layers": 2},
      "num_thread_layers = 2: must be 0 with",
    ),
    (
      {"context": "none", "normalize_pooled_vectors": True},
      "normalize_pooled_vectors = True: must be False",
    ),
    ({"context": "none", "reply_matching_weight": 0.1}, "reply_matching_weight = 0.1"),
    ({"nearest_context_tokens": 8}, "nearest_context_tokens = 8"),
    (
      {"context": "pooled", "nearest_context_tokens": -1},
      "nearest_context_tokens = -1",
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(changes, named):
  with pytest.raises(UserError, match=named) as raised:
    ModelConfig(**{"context": "concatenated", **changes})
  assert "\n" not in str(raised.value)
