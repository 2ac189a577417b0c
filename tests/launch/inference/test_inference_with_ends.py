"""Modes of inference where comments stand between the ends of a sequence."""

import json

import numpy as np
import pytest

import commentree
from commentree.tasks.config.preprocessing import MarkersConfig
from commentree.tasks.trees import markers
from commentree.tasks.vocabulary import vocabularies
from commentree.tests.support.launch import made_runs
from commentree.tests.support.tasks.vocabulary_fixture import MAKERS, some_texts

TEXT = " ".join(some_texts(1)[0].split()[:5])


pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """Makes a run with BERT's kind of vocabulary, and loads it."""
  folder = tmp_path_factory.mktemp("ends")
  vocabulary = folder / "vocabulary.json"
  all_markers = markers.all_markers(MarkersConfig(max_users=2))
  theirs = MAKERS["bert"](folder)
  theirs.write_text(theirs.read_text().replace("[MASK]", "<mask>"))
  vocabularies.add_markers(theirs, vocabulary, all_markers, 0)
  trees = folder / "trees.jsonl"
  trees.write_text(json.dumps(tree()) + "\n")

  def make(objective, **settings):
    run = made_runs.make(
      folder,
      objective,
      **{
        "MIXTURE_OR_TASK_NAME": "commentree_files",
        "FILES": str(trees),
        "VOCABULARY": str(vocabulary),
        "MarkersConfig.max_users": 2,
        "SubtreeConfig.sequence_ends": True,
        **settings,
      },
    )
    return commentree.load(run)

  return make


def tree(text=TEXT):
  comments = [{"id": "a", "parent_id": "t", "author": "bob", "body": text}]
  return {"id": "t", "title": "bako", "author": "ann", "comments": comments}


def test_masks_are_filled_in_their_places_up_to_the_end(load):
  model = load("mlm")
  words = TEXT.split()
  masked = " ".join([words[0], "<mask>", *words[2:]])
  answer = model.fill(tree(masked))[1]
  (mask,) = answer["masks"]
  assert mask["start"] == len(words[0]) + 1
  assert "[" not in "".join(c["token"] for c in mask["candidates"])
  # 24 tokens are read: two ends, the author's marker, and masks.
  (long,) = [a for a in model.fill(tree(" ".join(["<mask>"] * 30))) if a["masks"]]
  filled = [found["candidates"] is not None for found in long["masks"]]
  assert filled == [True] * 21 + [False] * 9


def test_spans_are_told_in_the_text_and_ends_are_in_none(load):
  model = load("tag", **{"LabelsConfig.names": ("claim",)})
  for answer, text in zip(model.tag(tree()), ("bako", TEXT)):
    for span in answer["spans"]:
      assert text[span["start"] : span["end"]].strip() == span["text"]


def test_log_likelihood_of_a_causal_model_is_that_of_its_reply(load):
  model = load("clm")
  post = {**tree(), "comments": []}
  (answer,) = model.generate(post, reply_to="post", max_tokens=4, author="x")
  (reply,) = answer["replies"]
  body = {"id": "r", "parent_id": "t", "author": "x", "body": reply["text"]}
  scored = model.score({**post, "comments": [body]})[1]
  ended = scored["tokens"] == reply["tokens"] + 1
  assert reply["tokens"] > 0
  assert ended or scored["tokens"] > 0
  if reply["ended"] and ended:
    np.testing.assert_allclose(
      scored["log_likelihood"], reply["log_likelihood"], rtol=1e-3
    )
