"""Translations: from files to forests in which both are masked."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks import data
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  MarkersConfig,
  MaskingConfig,
  PreprocessingConfig,
  SubtreeConfig,
  TreeConfig,
)
from commentree.tasks.dataset_files import tree_record
from commentree.tasks.objectives.label_objectives import LabelObjective
from commentree.tasks.objectives.masking import Masker
from commentree.tasks.preparation import preparing
from commentree.tasks.seqio_tasks import registry
from commentree.tasks.sources import vocabulary_training_text
from commentree.tasks.subtrees import translations
from commentree.tasks.subtrees.subtree_builder import LANGUAGES, SubtreeBuilder
from commentree.tasks.trees.columns import from_columns, to_columns
from commentree.tasks.trees.comment_tree import (
  REPAIRED_TRANSLATION,
  ReadCounts,
  Translation,
)
from commentree.tests.support.tasks import building_fixture
from commentree.tests.support.tasks.building_fixture import comment, record, write_trees
from commentree.tests.support.tasks.forest_reading import SHAPE, pack_and_read
from commentree.tests.support.tasks.reading import read
from commentree.tests.support.tasks.vocabulary_fixture import Characters

TLM = ObjectiveConfig("tlm", languages=("en", "de"))
VOCABULARY = 1000  # characters
MASK = 999


def german(text):
  return {"language": "de", "text": text}


def subtrees_of(trees, objective=TLM, **subtrees):
  builder = SubtreeBuilder(
    Characters(),
    PreprocessingConfig(
      markers=MarkersConfig(authors=False),
      subtrees=SubtreeConfig(**subtrees),
      objective=objective,
    ),
  )
  return [subtree for tree in trees for subtree in builder(tree)], builder


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  return write_trees(
    tmp_path_factory.mktemp("trees"),
    record(
      "p",
      comment("a", "p", "yes indeed", language="en", translation=german("ja doch")),
      comment("b", "a", "nein", language="de"),
      comment("c", "b", "peut-être", language="fr", translation=german("vielleicht")),
      comment(
        "d", "c", "why", language="en", translation={"language": "fr", "text": "x"}
      ),
      comment("e", "d", "same", language="de", translation=german("gleich")),
      comment("f", "e", "plain"),
      language="en",
      translation=german("Titel"),
    ),
  )


def test_languages_and_translations_are_read_of_posts_and_comments(path):
  ((tree,), read_counts) = read(path)
  assert tree.comments[0].language == "en"
  assert tree.comments[0].translation == Translation("de", "Titel")
  assert [c.language for c in tree.comments[1:]] == ["en", "de", "fr", "en", "de", None]
  assert tree.comments[1].translation == Translation("de", "ja doch")
  assert tree.comments[2].translation is None
  assert REPAIRED_TRANSLATION not in read_counts.repaired


def test_odd_translations_are_left_out_and_counted(tmp_path):
  odd = ["ja", 3, [], {}, german(None), german(""), german("  "), {"text": "x"}]
  comments = [comment(f"c{i}", "p", translation=t) for i, t in enumerate(odd)]
  good = comment("g", "p", language=5, translation={"language": 7, "text": "a\ud800"})
  (tree,), read_counts = read(write_trees(tmp_path, record("p", *comments, good)))
  assert [c.translation for c in tree.comments[:-1]] == [None] * 9
  assert tree.comments[-1].language == "5"
  assert tree.comments[-1].translation == Translation("7", "a\ufffd")
  assert read_counts.repaired[REPAIRED_TRANSLATION] == len(odd)


def test_built_datasets_keep_languages_and_translations(path, tmp_path):
  ((tree,), _) = read(path)
  built = building_fixture.build([path], tmp_path / "forum", BuildConfig())
  assert list(building_fixture.trees(built.folder)) == [tree]
  columns = to_columns(tree)
  assert from_columns(columns) == tree_record.decode(tree_record.encode(tree)) == tree


def test_vocabularies_are_trained_on_translations_too(path):
  texts = vocabulary_training_text.iter_texts(
    str(path), TreeConfig(), CleaningConfig(), ReadCounts()
  )
  assert {"ja doch", "vielleicht", "Titel", "yes indeed"} <= set(texts)


def text_of(tokens):
  return "".join(map(chr, tokens))


def comments_of(subtree):
  ends = np.cumsum(subtree["lengths"])
  for length, end in zip(subtree["lengths"], ends):
    languages = subtree[LANGUAGES][end - length : end]
    yield text_of(subtree["tokens"][end - length : end]), languages.tolist()


def test_a_translation_stands_behind_its_comment_in_a_language_of_its_own(path):
  trees, _ = read(path)
  (subtree,), _ = subtrees_of(trees)
  found = list(comments_of(subtree))
  assert found[1:] == [
    ("yes indeed" + "ja doch", [1] * 10 + [2] * 7),
    ("nein", [2] * 4),
    ("peut-être" + "vielleicht", [0] * 9 + [2] * 10),
    ("why", [1] * 3),  # of a language that was not asked for
    ("same", [2] * 4),  # of its own language: nothing would part the two
    ("plain", [0] * 5),
  ]
  assert found[0][0].endswith("Titel")
  (plain,), _ = subtrees_of(trees, ObjectiveConfig("mlm", languages=("en", "de")))
  assert [text for text, _ in comments_of(plain)][1] == "yes indeed"
  (bare,), _ = subtrees_of(trees, ObjectiveConfig())
  assert LANGUAGES not in bare


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40))
def test_where_both_do_not_fit_as_much_is_kept_of_one_as_of_the_other(
  own, other, limit
):
  kept = translations.share(own, other, limit)
  assert sum(kept) == min(limit, own + other)
  assert 1 <= kept[0] <= own
  assert 1 <= kept[1] <= other
  if own + other > limit:
    assert abs(kept[0] / sum(kept) - own / (own + other)) <= 1 / limit


@pytest.mark.parametrize("long_comments", ["truncate", "chunk"])
def test_long_translations_are_cut_or_chunked_and_counted(path, long_comments):
  ((tree,), _) = read(path)
  subtrees, builder = subtrees_of(
    [tree], max_comment_tokens=10, long_comments=long_comments, max_tree_size=40
  )
  nodes = [node for subtree in subtrees for node in comments_of(subtree)]
  assert builder.counts.tokens == len(
    tree.comments[0].text + "Titelyes indeedja dochneinpeut-êtrevielleichtwhysameplain"
  )
  if long_comments == "truncate":
    assert ("yes in" + "ja d", [1] * 6 + [2] * 4) in nodes
    whole = sum(len(text) for text, _ in nodes)
    assert whole == builder.counts.tokens - builder.counts.tokens_cut
  else:
    assert ("yes indeed", [1] * 10) in nodes
    assert ("ja doch", [2] * 7) in nodes
    assert builder.counts.tokens_cut == 0


def test_nothing_goes_wrong_where_cleaning_leaves_nothing_of_either(tmp_path):
  texts = ["\u200b", "x" * 30]
  comments = [
    comment(f"c{i}{j}", "p", body, language="en", translation=german(other))
    for i, body in enumerate(texts)
    for j, other in enumerate(texts)
  ]
  trees, _ = read(write_trees(tmp_path, record("p", *comments)))
  subtrees, _ = subtrees_of(trees, max_comment_tokens=10, max_tree_size=40)
  assert [len(text) for text, _ in comments_of(subtrees[0])][1:] == [10, 10]


def masker(**config):
  maskable = np.arange(VOCABULARY) < MASK
  optional_features = TLM.optional_features
  return Masker(
    MaskingConfig(**config), MASK, maskable, optional_features=optional_features
  )


def test_both_are_masked_and_positions_begin_anew_in_the_translation(path):
  trees, _ = read(path)
  subtrees, _ = subtrees_of(trees)
  sides = set()
  for epoch in range(20):
    masked = [masker(rate=0.3)(p, 32, 0, epoch, i) for i, p in enumerate(subtrees)]
    for target in pack_and_read(masked):
      runs = np.flatnonzero(np.diff(target.languages, prepend=-1))
      ends = [*runs[1:].tolist(), len(target.read)]
      expected = [p for start, end in zip(runs, ends) for p in range(end - start)]
      assert list(target.positions) == expected
      hidden = np.flatnonzero(np.array(target.predicted) >= 0)
      if len(runs) == 2:
        sides |= {target.languages[place] for place in hidden}
      for _, positions, languages in target.ancestors:
        assert sum(p == 0 for p in positions) == len(set(languages))
  assert sides == {0, 1, 2}


def test_a_comment_without_languages_is_as_ever_beside_one_with_them(path):
  trees, _ = read(path)
  with_languages, _ = subtrees_of(trees)
  without, _ = subtrees_of(trees, ObjectiveConfig())
  masked = [masker()(p, 32, 0, 0, i) for i, p in enumerate([*with_languages, *without])]
  alone = [target for subtree in masked for target in pack_and_read([subtree])]
  assert sorted(pack_and_read(masked)) == sorted(alone)
  bare = dataclasses.replace(SHAPE, optional_features=())
  with pytest.raises(UserError, match="languages"):
    pack_and_read(masked[:1], bare)


def test_labels_may_be_predicted_of_comments_in_languages(path):
  trees, _ = read(path)
  (subtree,), _ = subtrees_of(trees, ObjectiveConfig("tag", languages=("en", "de")))
  subtree["token_labels"] = np.arange(len(subtree["tokens"]), dtype=np.int32)
  objective = LabelObjective(
    True, ObjectiveConfig("tag", languages=("de",)).optional_features
  )
  targets = pack_and_read([objective(subtree, 32, 0, 0, 0)])
  assert {language for t in targets for language in t.languages} == {0, 1, 2}
  assert sum(len(t.predicted) for t in targets) == subtree["lengths"][1:].sum()


def test_subtrees_with_translations_are_told_from_those_without(path, tmp_path):
  keys = set()
  for objective in (
    ObjectiveConfig(),
    TLM,
    ObjectiveConfig("mlm", languages=TLM.languages),
  ):
    preprocessing = PreprocessingConfig(objective=objective)
    task = registry.add_generated_task(
      "keys", preprocessing=preprocessing, cache_dir=tmp_path
    )
    keys.add(data.records.fingerprint(preparing.settings(task, "train")))
  assert len(keys) == 3
