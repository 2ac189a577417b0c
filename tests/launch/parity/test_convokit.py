"""ConvoKit itself takes what we add to a corpus, keeps it, and forecasts by a model.

These run where the extra `convokit` is installed; `tests/launch/test_convokit.py`,
which shows what is added, uses it then. `convokit.forecaster` cannot be imported
without a GPU, since models of it need one; what is asked for is in a file that can.
"""

import importlib
import math
import sys
import types

import numpy as np
import pytest

import commentree
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.readers import iter_trees
from commentree.tasks.trees.comment_tree import ReadCounts
from commentree.tests.support.launch import made_runs

LABELS = ("stays", "leaves")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
  """ConvoKit writes a file of settings at home."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    yield


@pytest.fixture(scope="module")
def convokit(home):
  return pytest.importorskip(
    "convokit.model", reason="the extra `convokit` is not installed"
  ) and importlib.import_module("convokit")


@pytest.fixture(scope="module")
def ours(convokit):
  return importlib.import_module("commentree.launch.convokit")


@pytest.fixture(scope="module")
def classifier(convokit, tmp_path_factory):
  labels = {
    "CommentLabelsConfig.source": "label",
    "CommentLabelsConfig.names": LABELS,
  }
  folder = tmp_path_factory.mktemp("classifier")
  return commentree.load(made_runs.make(folder, "classify", **labels))


@pytest.fixture
def corpus(convokit):
  speakers = {name: convokit.Speaker(id=name) for name in ("ann", "bob")}
  rows = [
    ("p", "p", None, "tulan"),
    ("a", "p", "p", "rupon tulan"),
    ("x", "p", "a", "[deleted]"),
    ("b", "p", "x", "taso rupon"),
    ("q", "q", None, "lemo"),
    ("c", "q", "q", "lemo taso"),
  ]
  made = [
    convokit.Utterance(
      id=ident,
      speaker=speakers["ann" if reply_to is None else "bob"],
      conversation_id=conversation,
      reply_to=reply_to,
      timestamp=number,
      text=text,
      meta={"score": number},
    )
    for number, (ident, conversation, reply_to, text) in enumerate(rows)
  ]
  found = convokit.Corpus(utterances=made)
  for ident, title, happened in (("p", "nuvesa", 1), ("q", "dusisa", 0)):
    found.get_conversation(ident).add_meta("title", title)
    found.get_conversation(ident).add_meta("left", happened)
  return found


def test_a_transformer_is_one_of_convokit_s_and_what_it_adds_is_kept(
  convokit, ours, corpus, classifier, tmp_path
):
  transformer = ours.CommentTreeTransformer(classifier)
  assert isinstance(transformer, convokit.Transformer)
  pipeline = convokit.ConvokitPipeline([("commentree", transformer)])
  pipeline.transform(corpus)
  corpus.dump("annotated", base_path=str(tmp_path))
  again = convokit.Corpus(filename=str(tmp_path / "annotated"))
  for each in corpus.iter_utterances():
    assert again.get_utterance(each.id).meta.to_dict() == each.meta.to_dict()
  found = again.get_utterance("b")
  assert found.meta["commentree_label"] in LABELS
  assert set(found.meta["commentree_probabilities"]) == set(LABELS)
  assert again.get_utterance("x").meta["commentree_why"] == ours.NOT_IN_TREE
  np.testing.assert_array_equal(
    found.get_vector("commentree").toarray(), corpus.get_vectors("commentree", ["b"])
  )
  table = again.get_utterances_dataframe()
  assert table.loc["b", "meta.commentree_label"] == found.meta["commentree_label"]
  assert len(again.get_vectors("commentree", as_dataframe=True)) == 5


def test_a_corpus_in_memory_becomes_the_trees_that_its_files_become(
  ours, corpus, tmp_path
):
  config = TreeConfig(target_post=True)
  corpus.dump("corpus", base_path=str(tmp_path))
  from_files = {
    tree.id: tree
    for tree in iter_trees([str(tmp_path / "corpus")], config, ReadCounts())
  }
  assert set(from_files) == {"p", "q"}
  for conversation in corpus.iter_conversations():
    found = ours.tree_of(
      conversation.iter_utterances(), conversation.meta, config, ReadCounts()
    )
    assert found.tree == from_files[conversation.id]
    assert found.utterances == [comment.id for comment in found.tree.comments]


def test_a_forecaster_of_convokit_forecasts_by_a_model(
  convokit, ours, corpus, classifier, monkeypatch
):
  # A package without what its own file imports.
  folder = types.ModuleType("convokit.forecaster")
  folder.__path__ = [f"{convokit.__path__[0]}/forecaster"]
  monkeypatch.setitem(sys.modules, "convokit.forecaster", folder)
  whole = importlib.import_module("convokit.forecaster.forecaster")
  asked = importlib.import_module("convokit.forecaster.forecasterModel").ForecasterModel
  model = ours.CommentTreeForecaster(classifier, "leaves")
  missing = {name for name in asked.__abstractmethods__ if not hasattr(model, name)}
  assert not missing
  forecaster = whole.Forecaster(model, labeler="left")
  forecaster.transform(corpus)
  scores = {each.id: each.meta["forecast_prob"] for each in corpus.iter_utterances()}
  assert scores.pop("x") is None
  ours.CommentTreeTransformer(classifier, "classify").transform(corpus)
  for ident, score in scores.items():
    meta = corpus.get_utterance(ident).meta
    expected = meta["commentree_probabilities"]["leaves"]
    assert score == pytest.approx(expected, abs=1e-5)
    assert meta["forecast"] == (score > 0.5)
  forecaster.fit(corpus, val_context_selector=lambda context: True)
  highest = [
    max(scores.get(each.id, 0) for each in conversation.iter_utterances())
    for conversation in corpus.iter_conversations()
  ]
  assert model.decision_policy.threshold in [
    math.inf,
    *(pytest.approx(score, abs=1e-5) for score in highest),
  ]
