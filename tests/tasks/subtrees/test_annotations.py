"""Labels and discourse markers of subtrees, from trees to SeqIO's examples."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import seqio

from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  MarkersConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.preparation import preparing, records
from commentree.tasks.seqio_tasks import registration, registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.seqio_tasks.registry import CommentTreeTask
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks.vocabulary_fixture import some_texts

MARKERS = all_markers(MarkersConfig())
LABELS = LabelsConfig(("claim", "premise"))
TEXT = "bako  debi\n\n(see http://x.org) on the\nother hand, goma but tofu."


def span(part, label):
  return Span(TEXT.index(part), TEXT.index(part) + len(part), label)


def tree():
  spans = (span("debi\n\n(see", "claim"), span("goma but", "premise"), span("on", "x"))
  return CommentTree(
    "t",
    [
      Comment("p", -1, "ann", "title", 0),
      Comment("a", 0, "bob", TEXT, 1, None, spans),
      Comment("b", 1, "ann", "but bako", 2),
    ],
  )


class TwentyTrees(TreeSource):
  """The same tree over and over."""

  def trees(self, split):
    return iter([tree()] * 20)

  def signature(self, split):
    return {}


def train(path, kind):
  texts = [*some_texts(), "see on the other hand but (), goma."] * 2
  config = VocabularyConfig({"unigram": 250}.get(kind, 450), kind)
  vocabularies.train_vocabulary(texts, path, config, MARKERS)
  return Tokenizer(lambda: path, MARKERS)


@pytest.fixture(scope="module", params=["unigram", "byte_bpe", "wordpiece"])
def tokenizer(request, tmp_path_factory):
  return train(tmp_path_factory.mktemp("v") / "vocabulary", request.param)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
  return train(tmp_path_factory.mktemp("v") / "vocabulary", "byte_bpe")


@pytest.fixture
def phrases(tmp_path):
  (tmp_path / "phrases").write_text("but\non the other hand\n")
  return DiscourseMarkersConfig(str(tmp_path / "phrases"))


def comment(builder, name, number=1):
  """Words of a comment's tokens where the annotation is, by its value."""
  (subtree,) = builder(tree())
  ends = np.cumsum(subtree["lengths"])
  tokens = slice(ends[number] - subtree["lengths"][number], ends[number])
  values = subtree[name][tokens].tolist()
  spelled = {}
  for value, token in zip(values, subtree["tokens"][tokens].tolist()):
    text = builder.tokenizer.decode([token]).strip().removeprefix("##")
    spelled[value] = spelled.get(value, "") + text
  return spelled


@pytest.mark.parametrize("authors", [True, False])
def test_labelled_words_are_those_labelled_in_the_text(tokenizer, authors):
  markers = MarkersConfig(authors=authors)
  builder = SubtreeBuilder(
    tokenizer, PreprocessingConfig(markers=markers, labels=LABELS)
  )
  spelled = comment(builder, "token_labels")
  assert "".join((spelled[1], spelled[2])) == "debi(see"
  assert "".join((spelled[3], spelled[4])) == "gomabut"
  assert set(spelled) == {0, 1, 2, 3, 4}
  assert builder.counts.spans == 2
  assert builder.counts.spans_lost == 0
  assert "2 labelled spans (0 lost in cleaning)" in builder.counts.report()


def test_labels_and_phrases_stay_at_their_words_where_others_are_taken_out(
  tokenizer, phrases
):
  def tokens(builder, said, spans):
    comments = [Comment("p", -1, "ann", "bako debi goma bako", 0)]
    comments.append(Comment("a", 0, "bob", said, 1, None, spans))
    *_, (_, labels), (_, numbers) = (
      (name, builder.encode(CommentTree("t", comments))[1][name][1].tolist())
      for name in ("token_labels", "phrases")
    )
    return labels, numbers

  said = "see bako debi goma bako but on the other hand debi"
  builder = SubtreeBuilder(
    tokenizer,
    PreprocessingConfig(
      cleaning=CleaningConfig(quotes=False, copied_quotations=4),
      labels=LABELS,
      discourse=phrases,
    ),
  )
  start = said.index("hand")
  span = Span(start, start + len("hand debi"), LABELS.names[0])
  short = said.replace("bako debi goma bako ", "")
  moved = span._replace(start=short.index("hand"), end=len(short))
  assert tokens(builder, said, (span,)) == tokens(builder, short, (moved,))
  assert builder.counts.spans_lost == 0
  assert "words taken out, copied from comments above" in builder.counts.report()


@pytest.mark.parametrize("authors", [True, False])
def test_phrases_are_numbered_in_each_comment(tokenizer, phrases, authors):
  markers = MarkersConfig(authors=authors)
  builder = SubtreeBuilder(
    tokenizer, PreprocessingConfig(markers=markers, discourse=phrases)
  )
  spelled = comment(builder, "phrases")
  assert {n: spelled[n] for n in (1, 2)} == {1: "ontheotherhand", 2: "but"}
  assert comment(builder, "phrases", 2)[1] == "but"


def test_cleaning_that_leaves_white_space_shifts_nothing(tokenizer):
  for cleaning in (
    CleaningConfig(whitespace=False),
    CleaningConfig(False, False, False, False, False),
  ):
    spaced = tree()
    text = "\n  " + TEXT + " \n"
    moved = tuple(
      Span(s.start + 3, s.end + 3, s.label) for s in spaced.comments[1].spans
    )
    spaced.comments[1] = Comment("a", 0, "bob", text, 1, None, moved)
    for authors in (True, False):
      builder = SubtreeBuilder(
        tokenizer,
        PreprocessingConfig(
          cleaning=cleaning, markers=MarkersConfig(authors=authors), labels=LABELS
        ),
      )
      (subtree,) = builder(spaced)
      labelled = subtree["tokens"][subtree["token_labels"] > 0].tolist()
      spelled = "".join(
        "".join(tokenizer.decode([t]) for t in labelled).replace("##", "").split()
      )
      assert spelled == "debi(seegomabut"


def test_without_settings_subtrees_have_no_annotations(tokenizer):
  (subtree,) = SubtreeBuilder(tokenizer)(tree())
  assert not {"token_labels", "phrases"} & set(subtree)


def test_annotations_are_cut_with_their_tokens_and_no_node_has_half_a_phrase(
  tokenizer, phrases
):
  whole = SubtreeBuilder(
    tokenizer, PreprocessingConfig(labels=LABELS, discourse=phrases)
  )
  (expected,) = whole(tree())
  for long_comments in ("truncate", "chunk"):
    for limit in range(4, 24):
      cut = SubtreeConfig(max_comment_tokens=limit, long_comments=long_comments)
      (subtree,) = SubtreeBuilder(
        tokenizer, PreprocessingConfig(subtrees=cut, labels=LABELS, discourse=phrases)
      )(tree())
      ends = np.cumsum(expected["lengths"])
      for node in range(3):
        tokens = slice(ends[node] - expected["lengths"][node], ends[node])
        labels = expected["token_labels"][tokens]
        numbers = expected["phrases"][tokens]
        got = np.repeat(subtree["node_ids"], subtree["lengths"]) == node
        kept = got.sum()
        assert subtree["token_labels"][got].tolist() == labels[:kept].tolist()
        for number in set(numbers.tolist()) - {0}:
          there = np.flatnonzero(numbers == number)
          cut_up = there[0] // limit != there[-1] // limit
          if there[0] < kept:
            expected_there = 0 if cut_up else len(there)
            assert (subtree["phrases"][got] == number).sum() == expected_there


def test_annotations_come_back_from_disk(tokenizer, phrases):
  (subtree,) = SubtreeBuilder(
    tokenizer, PreprocessingConfig(labels=LABELS, discourse=phrases)
  )(tree())
  again = records.decode(records.encode(subtree))
  assert set(again) == set(subtree)
  for name in ("token_labels", "phrases"):
    np.testing.assert_array_equal(again[name], subtree[name])


@pytest.mark.long
def test_seqio_examples_hold_annotations_and_prefer_phrases(byte_level, phrases):
  def examples(share, labels=LABELS):
    config = DiscourseMarkersConfig(phrases.file, share)
    preprocessing = PreprocessingConfig(labels=labels, discourse=config)
    task = CommentTreeTask("annotated", TwentyTrees(), byte_level, preprocessing)
    seqio.TaskRegistry.reset()
    seqio.TaskRegistry.add_provider("annotated", task)
    lengths = {"encoder": 64, "decoder": 64}
    ds = task.get_dataset(lengths, split="train", shuffle=False, seed=0)
    converter = CommentForestFeatureConverter(
      layout=ForestLayout(decoder_rows=4, max_ancestors=4)
    )
    assert list(converter(ds, lengths).as_numpy_iterator())
    return list(ds.as_numpy_iterator())

  often, never = examples(1.0), examples(0.0)
  for example in often:
    assert len(example["token_labels"]) == len(example["tokens"])
    assert example["token_labels"].any()

  def masked_in_phrases(found):
    return sum((e["phrases"][e["is_masked"] == 1] > 0).sum() for e in found)

  assert masked_in_phrases(often) > 10
  assert masked_in_phrases(never) == 0


def files_config(tmp_path, tokenizer, **settings):
  path = tmp_path / "trees.jsonl"
  lines = [
    {
      "id": f"t{i}",
      "title": "but",
      "comments": [{"id": "c", "parent_id": f"t{i}", "body": "but bako"}],
    }
    for i in range(20)
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return DataConfig(
    "commentree_files",
    {"encoder": 32, "decoder": 32},
    files=str(path),
    vocabulary=tokenizer.path,
    cache_dir=str(tmp_path / "cache"),
    **settings,
  )


def test_another_list_or_other_labels_prepare_anew_but_another_share_does_not(
  tmp_path, tokenizer, phrases
):
  files = files_config(tmp_path, tokenizer)

  def key(**settings):
    registration.register_tasks(
      dataclasses.replace(files, preprocessing=PreprocessingConfig(**settings))
    )
    task = registry.get_task("commentree_files")
    return records.fingerprint(preparing.settings(task, "train"))

  keys = [key(), key(labels=LABELS), key(discourse=phrases)]
  keys.append(key(discourse=DiscourseMarkersConfig("english")))
  keys.append(key(cleaning=CleaningConfig(copied_quotations=6)))
  assert len(set(keys)) == 5
  assert key(discourse=DiscourseMarkersConfig(phrases.file, 0.1)) == keys[2]
  with open(phrases.file, "a") as file:
    file.write("so\n")
  assert key(discourse=phrases) not in keys


def test_a_list_that_is_not_there_is_said_before_anything_is_read(tmp_path, tokenizer):
  discourse = DiscourseMarkersConfig(str(tmp_path / "none"))
  with pytest.raises(UserError, match=r"DiscourseMarkersConfig\.file"):
    data.open_data(
      files_config(
        tmp_path, tokenizer, preprocessing=PreprocessingConfig(discourse=discourse)
      )
    )


def test_prepared_subtrees_and_batches_hold_what_settings_ask_for(
  tmp_path, byte_level, phrases
):
  opened = data.open_data(
    files_config(
      tmp_path, byte_level, preprocessing=PreprocessingConfig(discourse=phrases)
    )
  )
  assert opened.splits["train"][0]["phrases"].any()
  batch = next(iter(opened.train_batches(2, seed=0)))
  assert batch["decoder_loss_weights"].sum() > 0


@pytest.mark.parametrize("names", [("claim", "claim"), ("",), (3,)])
def test_labels_that_cannot_be_are_refused(names):
  with pytest.raises(UserError, match=r"LabelsConfig\.names"):
    LabelsConfig(names)


def test_masks_without_any_of_this_are_those_of_before():
  from commentree.tasks.config.preprocessing import MaskingConfig
  from commentree.tasks.objectives.masking import Masker
  from commentree.tests.support.tasks.drawn_subtrees import (
    MASK_ID,
    maskable,
    random_subtrees,
  )

  masker = Masker(MaskingConfig(), MASK_ID, maskable())
  digest = hashlib.blake2b(digest_size=8)
  for index, subtree in enumerate(random_subtrees(200)):
    masked = masker(subtree, 20, seed=3, epoch=2, index=index)
    digest.update(masked["input_tokens"].astype("<i4").tobytes())
    digest.update(masked["is_masked"].astype("<i4").tobytes())
  assert digest.hexdigest() == "5a54fef40d2fdbb8"
