"""`score` with attribution: what each ancestor counts is what its text counts."""

from __future__ import annotations

import dataclasses
import json

import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.tests.support.launch import made_runs

# An author's marker would stay where a text is taken away.
PLAIN = {"MarkersConfig.authors": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("attribution")


@pytest.fixture(scope="module")
def model_dir(folder):
  return made_runs.make(folder, **PLAIN)


def deepest(trees):
  """Returns the tree with the longest thread, and the ids on that from its end."""

  def thread(tree, ident):
    parents = {c["id"]: c["parent_id"] for c in tree["comments"]}
    above = [ident]
    while above[-1] in parents:
      above.append(parents[above[-1]])
    return above

  threads = [(thread(t, c["id"]), t) for t in trees for c in t["comments"]]
  above, tree = max(threads, key=lambda found: len(found[0]))
  return tree, above


def without_text(tree, ident):
  """Returns a tree with a comment's text gone, and the comment still there.

  A reader would take out the comment, and its replies would stand nearer to the post.
  """
  comments = [
    dataclasses.replace(c, text="") if c.id == ident else c for c in tree.comments
  ]
  return dataclasses.replace(tree, comments=comments)


def check(model, trees, atol, **options):
  """Compares what is said of the last of a thread with scores of other trees."""
  tree, (last, *above) = deepest(trees)
  assert len(above) >= 3
  answers = {a["comment"]: a for a in model.score(tree, attribution=True)}
  answer = answers[last]
  most = model.run.builder.preprocessing.subtrees.max_ancestors
  seen = above if len(above) <= most else [*above[: most - 1], above[-1]]
  assert [a["comment"] for a in answer["ancestors"]] == seen
  assert [a["distance"] for a in answer["ancestors"]] == [
    1 + above.index(ident) for ident in seen
  ]
  for ancestor in answer["ancestors"]:
    lacking = without_text(model._tree(tree, ""), ancestor["comment"])
    (found,) = (a for a in model.score(lacking, **options) if a["comment"] == last)
    assert found["tokens"] == answer["tokens"]
    less = answer["log_likelihood"] - found["log_likelihood"]
    expected = less / answer["tokens"]
    assert ancestor["nats_per_token"] == pytest.approx(expected, abs=atol)
  assert max(abs(a["nats_per_token"]) for a in answer["ancestors"]) > 50 * atol
  assert answers[tree["id"]]["ancestors"] == []
  plain = {a["comment"]: a for a in model.score(tree, **options)}[last]
  plain.pop("ancestors", None)
  assert plain == {name: value for name, value in answer.items() if name != "ancestors"}


@pytest.mark.long
def test_an_ancestor_counts_what_a_comment_loses_without_its_text(model_dir, model):
  check(model, made_runs.trees(model_dir, 12), 1e-4)


@pytest.mark.long
def test_so_it_is_of_replies_written_in_order_and_of_layers_along_the_thread(folder):
  model_dir = made_runs.make(
    folder / "clm", "clm", **PLAIN, **{"ModelConfig.num_thread_layers": 1}
  )
  model = commentree.load(model_dir)
  # Each comment apart: beside others, its ancestors know more of what is above them.
  check(model, made_runs.trees(model_dir, 12), 1e-4, attribution=True)


@pytest.mark.long
def test_only_ancestors_that_a_comment_may_see_are_told_of(model_dir, model):
  tree, (last, *above) = deepest(made_runs.trees(model_dir, 12))
  for ancestors, seen in (("parent_only", above[:1]), ("none", [])):
    answers = model.score(tree, attribution=True, ancestors=ancestors)
    (answer,) = (a for a in answers if a["comment"] == last)
    assert [a["comment"] for a in answer["ancestors"]] == seen


@pytest.mark.long
def test_the_command_writes_it(folder, model_dir, model):
  trees = made_runs.trees(model_dir, 2)
  file = made_runs.write(folder / "trees.jsonl", trees)
  output = folder / "scores.jsonl"
  flags = [f"--model_dir={model_dir}", "--input", str(file), f"--output={output}"]
  assert main.main(["infer", "--mode=score", "--attribution", *flags]) == 0
  lines = [json.loads(line) for line in output.read_text().splitlines()]
  together = [a for answers in model.score(trees, attribution=True) for a in answers]
  assert [a["ancestors"] for a in lines] == [a["ancestors"] for a in together]


def test_it_is_for_scores_alone(model_dir, capsys):
  flags = [f"--model_dir={model_dir}", "--input", "x.jsonl", "--output=y.jsonl"]
  assert main.main(["infer", "--mode=fill", "--attribution", *flags]) == (
    UserError.exit_code
  )
  assert "--attribution: is of no use with --mode=fill" in capsys.readouterr().err
