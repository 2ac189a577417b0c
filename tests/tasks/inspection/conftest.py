"""Trees to inspect, and an inspection of them."""

import pytest

from commentree.tasks.config.preprocessing import (
  CleaningConfig,
  MarkersConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.seqio_tasks.registry import CommentTreeTask
from commentree.tasks.trees import markers
from commentree.tasks.vocabulary import sentencepiece_backend, vocabularies
from commentree.tests.tasks.inspection.test_inspection import (
  WORDS,
  ListSource,
  inspect,
  random_trees,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "words.model"
  sentencepiece_backend.write_word_vocabulary(
    WORDS, path, markers.all_markers(MarkersConfig(max_users=8))
  )
  return vocabularies.Tokenizer(lambda: path)


@pytest.fixture(scope="module")
def make_task(tokenizer):
  def make(trees, cleaning=CleaningConfig(), **subtrees):
    settings = {"max_tree_size": 12, "max_ancestors": 3, "max_comment_tokens": 32}
    preprocessing = PreprocessingConfig(
      cleaning=cleaning,
      subtrees=SubtreeConfig(**{**settings, **subtrees}),
      markers=MarkersConfig(max_users=8),
    )
    return CommentTreeTask("inspected", ListSource(trees), tokenizer, preprocessing)

  return make


@pytest.fixture(scope="module")
def trees():
  return random_trees(8)


@pytest.fixture(scope="module")
def view(make_task, trees):
  return inspect(make_task(trees))
