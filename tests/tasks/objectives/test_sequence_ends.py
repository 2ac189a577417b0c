"""Comments between the beginning and the end of a sequence, as models were trained."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from commentree.errors import UserError
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  LabelsConfig,
  MarkersConfig,
  MaskingConfig,
  PreprocessingConfig,
  SubtreeConfig,
  TreeConfig,
)
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests import packing
from commentree.tasks.forests.forest_layout import ForestShape
from commentree.tasks.objectives.objectives import build
from commentree.tasks.subtrees.subtree_builder import LABELS, LANGUAGES, SubtreeBuilder
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span, Translation
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.vocabularies import Tokenizer
from commentree.tests.support.tasks.forest_reading import pack_and_read
from commentree.tests.support.tasks.vocabulary_fixture import MAKERS, some_texts

MARKERS = markers.all_markers(MarkersConfig(max_users=2))
NO_AUTHORS = MarkersConfig(authors=False)
LIMIT = 9
ENDS = SubtreeConfig(8, 4, LIMIT, sequence_ends=True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp("v")
  grown = {}
  for kind in ("t5", "roberta", "bert"):
    theirs = MAKERS[kind](folder)
    grown[kind] = theirs, folder / f"grown_{theirs.name}"
    vocabularies.add_markers(*grown[kind], MARKERS, 0)
  return grown


@pytest.fixture(params=["roberta", "bert"])
def tokenizer(request, paths):
  return Tokenizer(lambda: paths[request.param][1], MARKERS)


def tree(texts, **of_second):
  comments = [
    Comment(str(i), i - 1, "ann", text, i, **(of_second if i == 1 else {}))
    for i, text in enumerate(texts)
  ]
  return CommentTree("t", comments)


def nodes_of(subtree):
  return np.split(subtree["tokens"], np.cumsum(subtree["lengths"])[:-1])


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_comments_are_what_the_library_s_own_processor_makes_of_them(paths, kind):
  theirs, ours = paths[kind]
  library = tokenizers.Tokenizer.from_file(str(theirs))
  library.no_padding()
  library.enable_truncation(LIMIT)
  if kind == "bert":
    cls, sep = (library.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    library.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
  texts = [text.rsplit(" ", n)[0] for n, text in enumerate(some_texts(6))]
  tokenizer = Tokenizer(lambda: ours, MARKERS)
  builder = SubtreeBuilder(
    tokenizer, PreprocessingConfig(markers=NO_AUTHORS, subtrees=ENDS)
  )
  (subtree,) = builder(tree(texts))
  expected = [library.encode(text).ids for text in texts]
  assert {len(ids) for ids in expected} >= {LIMIT}
  assert [node.tolist() for node in nodes_of(subtree)] == expected
  words = sum(map(len, tokenizer.encode_batch(texts)))
  cut = words - sum(len(ids) - 2 for ids in expected)
  assert builder.counts.tokens_cut == cut > 0


def test_each_chunk_has_its_own_ends_and_no_word_is_lost(tokenizer):
  chunked = dataclasses.replace(ENDS, long_comments="chunk", max_tree_size=200)
  text = " ".join(some_texts(3))
  builder = SubtreeBuilder(
    tokenizer, PreprocessingConfig(markers=NO_AUTHORS, subtrees=chunked)
  )
  (subtree,) = builder(tree(["post", text]))
  begin, end = tokenizer.bos_id, tokenizer.eos_id
  nodes = nodes_of(subtree)
  assert len(nodes) > 5
  for node in nodes:
    assert (node[0], node[-1]) == (begin, end)
    assert 2 < len(node) <= LIMIT
  words = np.concatenate([node[1:-1] for node in nodes[1:]])
  np.testing.assert_array_equal(words, tokenizer.encode_batch([text])[0])
  assert len(builder.encode_texts([""])[0]) == 0


def test_ends_are_never_masked_and_never_put_in(tokenizer):
  preprocessing = PreprocessingConfig(
    subtrees=ENDS, masking=MaskingConfig(rate=1.0, mask_share=0.2, random_share=0.8)
  )
  (subtree,) = SubtreeBuilder(
    tokenizer, PreprocessingConfig(TreeConfig(target_post=True), subtrees=ENDS)
  )(tree(some_texts(6)))
  masked = build(preprocessing, tokenizer)(subtree, LIMIT, 0, 0, 0)
  ends = np.isin(subtree["tokens"], (tokenizer.bos_id, tokenizer.eos_id))
  assert ends.sum() == 12
  np.testing.assert_array_equal(
    np.isin(masked["input_tokens"], subtree["tokens"][ends]), ends
  )
  assert not masked["is_masked"][ends].any()
  assert masked["is_masked"].sum() > 12


def test_ends_have_no_label_and_words_keep_theirs(tokenizer):
  text = "bako debi goma"
  spans = (Span(5, 9, "claim"), Span(10, 14, "claim"))
  given = tree(["post", text], spans=spans)
  labels = LabelsConfig(("claim",))
  plain = SubtreeBuilder(
    tokenizer, PreprocessingConfig(subtrees=SubtreeConfig(8, 4, 40), labels=labels)
  )
  subtrees = dataclasses.replace(ENDS, max_comment_tokens=40)
  with_ends = SubtreeBuilder(
    tokenizer, PreprocessingConfig(subtrees=subtrees, labels=labels)
  )
  expected = plain.encode(given)[1][LABELS]
  assert set(expected[1].tolist()) >= {0, 1}
  for before, after in zip(expected, with_ends.encode(given)[1][LABELS]):
    assert after.tolist() == [-1, *before.tolist(), -1]
  preprocessing = PreprocessingConfig(
    subtrees=subtrees, labels=labels, objective=ObjectiveConfig("tag")
  )
  (subtree,) = with_ends(given)
  read = build(preprocessing, tokenizer)(subtree, 40, 0, 0, 0)
  (target,) = pack_and_read([read])
  assert target.predicted == (-1, *expected[1].tolist(), -1)


def test_offsets_of_words_are_those_without_ends(tokenizer):
  builder = SubtreeBuilder(tokenizer, PreprocessingConfig(subtrees=ENDS))
  texts = some_texts(3)
  plain = tokenizer.encode_batch_with_offsets(texts)
  found = builder.encode_texts_with_offsets(texts)
  for (ids, offsets), (all_ids, all_offsets) in zip(plain, found):
    words = ~builder.is_end(all_ids)
    np.testing.assert_array_equal(all_ids[words], ids)
    np.testing.assert_array_equal(all_offsets[words], offsets)
    assert not all_offsets[~words].any()
  np.testing.assert_array_equal(builder.encode_texts(texts)[0], found[0][0])


def test_clm_reads_and_predicts_the_same_with_ends_as_without(tokenizer):
  given = tree([*some_texts(5), "bako"])
  targets = []
  for ends in (False, True):
    # Room for the same words.
    subtrees = SubtreeConfig(8, 4, LIMIT + 2 * ends, sequence_ends=ends)
    objective = ObjectiveConfig("clm")
    preprocessing = PreprocessingConfig(subtrees=subtrees, objective=objective)
    (subtree,) = SubtreeBuilder(tokenizer, PreprocessingConfig(subtrees=subtrees))(
      given
    )
    read = build(preprocessing, tokenizer)(subtree, 64, 0, 0, 0)
    targets.append(sorted((t.read, t.predicted) for t in pack_and_read([read])))
  assert targets[0] == targets[1]
  assert any(tokenizer.end_id in predicted for _, predicted in targets[0])
  assert any(tokenizer.end_id not in predicted for _, predicted in targets[0])


def test_a_comment_and_its_translation_stand_between_the_same_ends(tokenizer):
  given = tree(
    ["post", some_texts(1)[0]],
    language="en",
    translation=Translation("de", some_texts(2)[1]),
  )
  objective = ObjectiveConfig("tlm", languages=("en", "de"))
  builder = SubtreeBuilder(
    tokenizer, PreprocessingConfig(subtrees=ENDS, objective=objective)
  )
  (subtree,) = builder(given)
  node = nodes_of(subtree)[1]
  assert len(node) == LIMIT
  assert builder.is_end(node).nonzero()[0].tolist() == [0, LIMIT - 1]
  languages = subtree[LANGUAGES][-LIMIT:]
  assert (languages[0], languages[-1]) == (1, 2)
  assert np.count_nonzero(np.diff(languages)) == 1


def test_positions_begin_with_the_beginning_in_every_comment_of_a_row(tokenizer):
  preprocessing = PreprocessingConfig(subtrees=ENDS)
  (subtree,) = SubtreeBuilder(tokenizer, PreprocessingConfig(subtrees=ENDS))(
    tree(some_texts(6))
  )
  masked = build(preprocessing, tokenizer)(subtree, 32, 0, 0, 0)
  shape = ForestShape(32, 32, 3, 3, 8, 8, 4, 3, 32)
  (forest,) = packing.pack(iter([masked]), shape, lookahead=4)
  for side in ("encoder", "decoder"):
    used = forest[f"{side}_segment_ids"] > 0
    begins = used & (forest[f"{side}_input_tokens"] == tokenizer.bos_id)
    assert begins.sum() == 5
    np.testing.assert_array_equal(begins, used & (forest[f"{side}_positions"] == 0))


def test_a_vocabulary_without_a_beginning_is_refused_in_a_line(paths):
  tokenizer = Tokenizer(lambda: paths["t5"][1], MARKERS)
  builder = SubtreeBuilder(tokenizer, PreprocessingConfig(subtrees=ENDS))
  with pytest.raises(UserError, match=r"sequence_ends = True: .* for the beginning"):
    builder.encode_texts(["bako"])


def test_rows_that_would_cut_ends_off_are_refused_in_a_line():
  lengths = {"encoder": 64, "decoder": 32}
  settings = {
    "mixture_or_task_name": "commentree_generated",
    "task_feature_lengths": lengths,
  }
  DataConfig(
    **settings,
    preprocessing=PreprocessingConfig(
      subtrees=SubtreeConfig(max_comment_tokens=32, sequence_ends=True)
    ),
  )
  DataConfig(
    **settings,
    preprocessing=PreprocessingConfig(subtrees=SubtreeConfig(max_comment_tokens=33)),
  )
  with pytest.raises(UserError, match="max_comment_tokens = 33: rows of 32 tokens"):
    DataConfig(
      **settings,
      preprocessing=PreprocessingConfig(
        subtrees=SubtreeConfig(max_comment_tokens=33, sequence_ends=True)
      ),
    )
