from __future__ import annotations

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.console import Console
from commentree.errors import UserError
from commentree.models.heads import label_counts
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.training import evaluation, partitioning
from commentree.training.checkpointing import checkpoint_choice
from commentree.training.config import CheckpointConfig, EvalConfig, PartitioningConfig
from commentree.training.metrics import f1
from commentree.training.reports import evaluation_report

TAGS = ("O", "B-claim", "I-claim", "B-premise", "I-premise")
LENGTH = 9


# ---- By hand: lists of strings, one comment at a time ------------------------------


def spans_of(tags):
  """seqeval's default mode, from its description: (kind, first, last) of each span."""
  spans, begun = set(), None
  for i, tag in enumerate([*tags, "O"]):
    part, _, kind = tag.partition("-")
    goes_on = part == "I" and begun is not None and begun[0] == kind
    if begun is not None and not goes_on:
      spans.add((*begun, i - 1))
      begun = None
    if begun is None and part in ("B", "I"):
      begun = (kind, i)
  return spans


def ratio(a, b):
  return a / b if b else 0.0


def f1_of(right, predicted, there):
  precision, recall = ratio(right, predicted), ratio(right, there)
  return ratio(2 * precision * recall, precision + recall)


def by_hand(comments):
  """Micro, macro and by kind: F1 of spans of [(tags there, tags predicted), ...]."""
  counts = {}
  for number, pair in enumerate(comments):
    there, found = ({(number, *span) for span in spans_of(tags)} for tags in pair)
    for kind in ("claim", "premise"):
      of_kind = [{s for s in spans if s[1] == kind} for spans in (there, found)]
      row = (len(of_kind[0] & of_kind[1]), len(of_kind[1]), len(of_kind[0]))
      counts[kind] = tuple(map(sum, zip(counts.get(kind, (0, 0, 0)), row)))
  each = {kind: f1_of(*row) for kind, row in counts.items() if row[1] + row[2]}
  micro = f1_of(*map(sum, zip(*counts.values()))) if counts else 0.0
  macro = sum(each.values()) / len(each) if each else 0.0
  return micro, macro, each


# ---- Spans -------------------------------------------------------------------------


@st.composite
def packed_comments(draw):
  """Rows of comments of some tokens, as names of tags and as arrays."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  shape = (2, LENGTH)
  there = rng.choice(5, shape, p=(0.3, 0.2, 0.25, 0.1, 0.15))
  # Often right, so that there is something to be counted.
  found = np.where(rng.random(shape) < 0.6, there, rng.integers(0, 5, shape))
  chains = np.zeros(shape, np.int32)
  for row in range(2):
    lengths = draw(st.lists(st.integers(1, 5), max_size=4))
    ids = [i + 1 for i, n in enumerate(lengths) for _ in range(n)][:LENGTH]
    chains[row, : len(ids)] = ids
  comments = [
    tuple(
      [TAGS[tag] for tag in tags[row][chains[row] == chain]] for tags in (there, found)
    )
    for row in range(2)
    for chain in range(1, chains[row].max() + 1)
  ]
  return comments, (there, found, chains)


count_spans = jax.jit(label_counts.span_counts, static_argnums=3)


@settings(max_examples=60, deadline=None)
@given(packed_comments())
def test_spans_are_counted_as_seqeval_counts_them_comment_by_comment(drawn):
  comments, arrays = drawn
  counts = np.asarray(count_spans(*map(jnp.asarray, arrays), 2))
  scores = f1.scores(counts, ("claim", "premise"))
  micro, macro, each = by_hand(comments)
  assert scores["micro"] == pytest.approx(micro)
  assert scores["macro"] == pytest.approx(macro)
  found = {name: label["f1"] for name, label in scores["by_label"].items()}
  assert found == pytest.approx(each)


@pytest.mark.parametrize(
  ("there", "found", "right"),
  [
    # Of a span all must be right: kind, first and last.
    ("B-claim I-claim O", "B-claim I-claim I-claim", 0),
    ("B-claim I-claim O", "O B-claim O", 0),
    ("B-claim I-claim O", "B-premise I-premise O", 0),
    # An inside without a beginning begins a span, one of another kind as well.
    ("B-claim I-claim O", "I-claim I-claim O", 1),
    ("B-claim B-premise O", "B-claim I-premise O", 2),
    # A beginning next to a span ends it.
    ("B-claim B-claim O", "B-claim I-claim O", 0),
    ("B-claim B-claim I-claim", "B-claim B-claim O", 1),
  ],
)
def test_what_is_right_is_the_whole_span(there, found, right):
  numbers = [[TAGS.index(tag) for tag in tags.split()] for tags in (there, found)]
  arrays = [jnp.array([tags]) for tags in (*numbers, [1, 1, 1])]
  assert count_spans(*arrays, 2)[0].sum() == right


def test_a_span_ends_with_its_comment():
  labels = jnp.array([[1, 2, 2, 2]])
  one = count_spans(labels, labels, jnp.array([[1, 1, 1, 1]]), 2)
  two = count_spans(labels, labels, jnp.array([[1, 1, 2, 2]]), 2)
  # Of what does not count nothing is counted.
  half = count_spans(labels, labels, jnp.array([[1, 1, 0, 0]]), 2)
  assert [int(counts[2, 0]) for counts in (one, two, half)] == [1, 2, 1]


# ---- Labels ------------------------------------------------------------------------


def test_labels_are_counted_each():
  labels = jnp.array([0, 0, 1, 1, 1, 3])
  found = jnp.array([0, 1, 1, 1, 0, 3])
  used = jnp.array([1, 1, 1, 1, 1, 0])
  counts = np.asarray(label_counts.class_counts(labels, found, used, 4))
  scores = f1.scores(counts, "abcd")
  assert scores["by_label"] == {
    "a": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "predicted": 2, "there": 2},
    "b": {
      "precision": pytest.approx(2 / 3),
      "recall": pytest.approx(2 / 3),
      "f1": pytest.approx(2 / 3),
      "predicted": 3,
      "there": 3,
    },
  }
  assert scores["micro"] == pytest.approx(3 / 5)
  assert scores["macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_nothing_has_an_f1_of_nothing():
  assert f1.scores(np.zeros((3, 2)), "ab") == {"micro": 0, "macro": 0, "by_label": {}}


def test_tags_are_told_by_their_names():
  assert f1.span_kinds(TAGS) == ["claim", "premise"]
  for names in ((), ("for", "against"), ("O", "B-claim"), ("O", "B-a", "I-b")):
    assert f1.span_kinds(names) == []


# ---- An evaluation -----------------------------------------------------------------


class LabelledStub(stub.StubModel):
  """Its tokens are tags, of which it has three in five right; ancestors change some."""

  def evaluate_batch(self, params, batch, condition):
    tokens = super().evaluate_batch(params, batch, condition)
    target = batch["decoder_target_tokens"]
    labels = target % 5
    wrong = (target // 5 + (condition == "none")) % 3 == 0
    chains = jnp.where(batch["decoder_loss_weights"] > 0, target // 8 + 1, 0)
    return tokens | {
      "labels": labels,
      "predictions": jnp.where(wrong, (labels + 1) % 5, labels),
      "chains": chains,
    }


@pytest.fixture(scope="module")
def results():
  model = LabelledStub()
  batch = stub.random_batch(0, 8)
  shapes = {name: values.shape for name, values in batch.items()}
  types = {name: values.dtype for name, values in batch.items()}
  params = model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  evaluate = evaluation.Evaluator(
    model,
    partitioning.make_mesh(PartitioningConfig()),
    PartitioningConfig(),
    EvalConfig(conditions=("true", "none")),
    label_names=TAGS,
  )
  return evaluate(params, stub.held_out()()), params


def test_an_evaluation_counts_over_all_batches(results):
  found, params = results
  for condition in ("true", "none"):
    comments, labels = [], []
    for batch in stub.held_out()():
      tokens = LabelledStub().evaluate_batch(params, batch, condition)
      used = batch["decoder_loss_weights"] > 0
      pairs = [np.asarray(tokens[name]) for name in ("labels", "predictions")]
      labels += zip(*(tags[used] for tags in pairs))
      chains = np.asarray(tokens["chains"])
      for at in np.ndindex(chains.shape[:2]):
        # Runs of one number, as comments are.
        runs = itertools.groupby(range(chains.shape[-1]), key=lambda m: chains[at][m])
        for chain, columns in runs:
          columns = list(columns)
          if chain:
            comments.append(
              tuple([TAGS[tag] for tag in tags[at][columns]] for tags in pairs)
            )
    micro, macro, each = by_hand(comments)
    assert found[condition]["span_f1"]["micro"] == pytest.approx(micro)
    assert found[condition]["span_f1"]["macro"] == pytest.approx(macro)
    assert set(found[condition]["span_f1"]["by_label"]) == set(each)
    right = sum(there == predicted for there, predicted in labels)
    assert found[condition]["f1"]["micro"] == pytest.approx(right / len(labels))
    assert 0 < micro < 1
  assert found["true"]["span_f1"]["micro"] != found["none"]["span_f1"]["micro"]


def test_f1_is_in_the_table_and_among_what_chooses_checkpoints(results):
  found, _ = results
  console = Console(file=io.StringIO(), width=160)
  console.print(evaluation_report.table(found))
  text = printed(console)
  for shown in ("F1 of labels: macro", "F1 of spans: micro", "F1 of spans: premise"):
    assert shown in text
  assert f"{found['none']['span_f1']['micro']:.3f}" in text
  metrics = evaluation_report.flat_metrics(found)
  assert metrics["true/span_f1/micro"] == found["true"]["span_f1"]["micro"]
  assert "none/span_f1/by_label/claim/precision" in metrics
  # More is better.
  better = {**metrics, "true/span_f1/micro": 1.0}
  one, other = (
    checkpoint_choice.quality(m, "true/span_f1/micro") for m in (metrics, better)
  )
  assert one < other


def test_a_metric_that_there_will_not_be_is_the_users_mistake():
  for metric, names in (
    ("true/f1/macro", ()),
    ("true/span_f1/micro", ("for", "against")),
  ):
    config = CheckpointConfig(best_metric=metric)
    with pytest.raises(UserError, match=r"no such metric unless ModelConfig\.head"):
      f1.check_best_metric(config, names)
  f1.check_best_metric(CheckpointConfig(best_metric="true/span_f1/macro"), TAGS)
  f1.check_best_metric(CheckpointConfig(), ())
