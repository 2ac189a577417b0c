"""A corpus of ConvoKit gets what a model says of its utterances.

Where ConvoKit is not installed a stand-in holds the data; with it,
`tests/launch/parity/test_convokit.py` shows more.
"""

import collections
import importlib
import subprocess
import sys

import numpy as np
import pytest

import commentree
from commentree.errors import UserError
from commentree.tests.support.launch import made_runs
from commentree.tests.support.launch.stand_ins import convokit as stand_in

LABELS = ("stays", "leaves")
Context = collections.namedtuple("Context", "context current_utterance conversation_id")


@pytest.fixture(scope="module")
def convokit(tmp_path_factory):
  """ConvoKit or what stands in for it, which writes a file of settings at home."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    try:
      yield importlib.import_module("convokit")
    except ModuleNotFoundError:
      patch.setitem(sys.modules, "convokit", stand_in)
      yield stand_in


@pytest.fixture(scope="module")
def ours(convokit):
  module = importlib.import_module("commentree.launch.convokit")
  yield module
  # Of a stand-in it is of no use to others.
  sys.modules.pop(module.__name__, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return commentree.load(made_runs.make(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  folder = tmp_path_factory.mktemp("classifier")
  labels = {
    "CommentLabelsConfig.source": "label",
    "CommentLabelsConfig.names": LABELS,
  }
  return commentree.load(made_runs.make(folder, "classify", **labels))


@pytest.fixture
def corpus(convokit, model):
  """Two conversations, one with a title and an utterance that is deleted."""
  made = [
    utterance(convokit, "p", "p", None, "tulan"),
    utterance(convokit, "a", "p", "p", "rupon tulan"),
    utterance(convokit, "x", "p", "a", "[deleted]"),
    utterance(convokit, "b", "p", "x", "taso rupon"),
    utterance(convokit, "q", "q", None, "lemo"),
  ]
  found = convokit.Corpus(utterances=made)
  found.get_conversation("p").add_meta("title", "nuvesa")
  return found


def utterance(convokit, ident, conversation, reply_to, text):
  return convokit.Utterance(
    id=ident,
    speaker=convokit.Speaker(id=f"speaker of {ident}"),
    conversation_id=conversation,
    reply_to=reply_to,
    timestamp="paxbq".index(ident),
    text=text,
  )


AS_TREES = [
  {
    "id": "p",
    "title": "nuvesa",
    "selftext": "tulan",
    "author": "speaker of p",
    "comments": [
      {"id": "a", "parent_id": "p", "author": "speaker of a", "body": "rupon tulan"},
      {"id": "b", "parent_id": "a", "author": "speaker of b", "body": "taso rupon"},
    ],
  },
  {"id": "q", "title": "lemo", "author": "speaker of q", "comments": []},
]


def test_utterances_get_vectors_and_losses_as_the_model_gives_trees(
  ours, corpus, model
):
  transformer = ours.CommentTreeTransformer(model)
  assert transformer.transform(corpus) is corpus
  scores = {a["comment"]: a for tree in model.score(AS_TREES) for a in tree}
  vectors = {a["comment"]: a["vectors"] for tree in model.embed(AS_TREES) for a in tree}
  assert set(scores) == {"p", "a", "b", "q"}
  for ident, score in scores.items():
    meta = corpus.get_utterance(ident).meta
    assert meta["commentree_loss"] == -score["log_likelihood"] / score["tokens"]
    for key in ("log_likelihood", "without_ancestors", "difference", "tokens"):
      assert meta[f"commentree_{key}"] == score[key]
    assert "commentree_vectors" not in meta
    (found,) = corpus.get_vectors("commentree", [ident])
    np.testing.assert_array_equal(found, np.mean(vectors[ident], axis=0))
    assert "commentree" in corpus.get_utterance(ident).vectors
  assert scores["b"]["difference"] != 0
  left_out = corpus.get_utterance("x")
  assert left_out.meta["commentree_loss"] is None
  assert left_out.meta["commentree_why"] == ours.NOT_IN_TREE
  assert "commentree" not in left_out.vectors
  assert transformer.read_counts.comments == {"kept": 2, "spliced out: deleted": 1}


def test_modes_and_their_options_are_those_of_the_model(ours, convokit, corpus, model):
  asked = {"embed": {"contextual": True}, "fill": {"top_k": 1, "mask": "MASK"}}
  corpus.get_utterance("b").text = "taso MASK"
  ours.CommentTreeTransformer(
    model, asked, name="mine", ancestors="parent_only"
  ).transform(corpus)
  trees = [made_runs.map_texts(lambda t: t.replace("rupon", "MASK"), AS_TREES[0])]
  trees[0]["comments"][0]["body"] = "rupon tulan"
  ((*_, answer),) = model.fill(trees, ancestors="parent_only", **asked["fill"])
  meta = corpus.get_utterance("b").meta
  assert meta["mine_filled"] == answer["filled"] != "taso MASK"
  assert meta["mine_masks"] == answer["masks"]
  assert corpus.get_utterance("a").meta["mine_why"] == "no mask in it"
  ((*_, answer),) = model.embed(trees, contextual=True, ancestors="parent_only")
  (found,) = corpus.get_vectors("mine_in_thread", ["b"])
  np.testing.assert_allclose(found, answer["in_thread"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("modes", "said"),
  [
    ("rank", "modes: 'rank' is none of fill, embed, score"),
    (["embed", "scores"], "modes: 'scores' is none of fill, embed, score"),
    ("classify", "is for runs of the objective classify"),
    ({"embed": {"top_k": 3}}, "--top_k: is of no use with --mode=embed"),
  ],
)
def test_a_mode_that_the_model_does_not_have_is_one_line(ours, model, modes, said):
  with pytest.raises(UserError) as error:
    ours.CommentTreeTransformer(model, modes)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_what_is_no_model_or_no_corpus_is_one_line(ours, model):
  for kind in (ours.CommentTreeTransformer, ours.CommentTreeForecaster):
    with pytest.raises(UserError, match="'runs/mine' is no model: give what comment"):
      kind("runs/mine", "score")
  with pytest.raises(UserError, match="'corpus' is no convokit"):
    ours.CommentTreeTransformer(model).transform("corpus")


class Threshold:
  """Decides as ConvoKit's policies do."""

  def decide(self, context, score_fn):
    score = score_fn(context)
    return score, int(score > 0.5)

  def fit(self, contexts, val_contexts, score_fn):
    return {"of": len(list(val_contexts)), "score_fn": score_fn}


def contexts_of(corpus):
  for conversation in corpus.iter_conversations():
    said = sorted(conversation.iter_utterances(), key=lambda each: each.timestamp)
    for number, each in enumerate(said, start=1):
      yield Context(said[:number], each, conversation.id)


def test_a_forecast_is_the_label_s_probability_given_the_thread(
  ours, corpus, classifier
):
  forecaster = ours.CommentTreeForecaster(
    classifier, "leaves", decision_policy=Threshold()
  )
  scores = {c.current_utterance.id: forecaster.score(c) for c in contexts_of(corpus)}
  assert np.isnan(scores.pop("x"))
  answers = {a["comment"]: a for tree in classifier.classify(AS_TREES) for a in tree}
  assert scores == {
    ident: pytest.approx(answer["probabilities"]["leaves"], abs=1e-5)
    for ident, answer in answers.items()
  }
  assert len(set(scores.values())) > 1


def test_only_the_threshold_of_a_forecaster_is_fitted(ours, classifier):
  forecaster = ours.CommentTreeForecaster(
    classifier, "leaves", decision_policy=Threshold()
  )
  said = forecaster.fit(iter(()), iter("ab"))
  assert said == {"of": 2, "score_fn": forecaster.score}
  with pytest.raises(UserError, match="does not train its model: fine-tune one"):
    forecaster.fit_belief_estimator(iter(()))


def test_a_label_that_the_run_does_not_have_is_one_line(ours, model, classifier):
  with pytest.raises(UserError, match="label: 'left' is none of the run's stays, lea"):
    ours.CommentTreeForecaster(classifier, "left", decision_policy=Threshold())
  with pytest.raises(UserError, match="is for runs of the objective classify"):
    ours.CommentTreeForecaster(model, "leaves", decision_policy=Threshold())


def test_a_package_that_is_missing_is_one_line():
  code = (
    "import sys; sys.modules['convokit'] = None\n"
    "from commentree.errors import UserError\n"
    "try:\n  import commentree.launch.convokit\n"
    "except UserError as error:\n  print(error)"
  )
  done = subprocess.run(
    [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
  )
  (line,) = done.stdout.splitlines()
  assert line.startswith("corpora of ConvoKit need convokit, which is not installed")
