"""`score`: copies with masks, and what each ancestor counts."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.inference import forests, progress
from commentree.launch.inference.modes import mode_table
from commentree.tests.support.launch import made_runs

# An author's marker would stay where a text is taken away.
PLAIN = {"MarkersConfig.authors": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("attribution")


@pytest.fixture(scope="module")
def model_dir(folder):
  return made_runs.make(folder, **PLAIN)


@pytest.fixture(scope="module")
def plain(model_dir):
  return made_runs.trees(model_dir, 12)


# ---- Copies with masks ---------------------------------------------------------------


def test_a_score_is_the_sum_of_log_probabilities_of_tokens_masked_in_turn(model, plain):
  tree = plain[0]
  size = int(model.run.tokenizer.maskable.sum())
  text = tree["comments"][0]["body"]
  words = text.split()
  expected = {"true": 0.0, "none": 0.0}
  counted = 0
  for place, word in enumerate(words):
    if word.startswith("["):
      continue
    counted += 1
    hidden = " ".join([*words[:place], "<mask>", *words[place + 1 :]])
    comments = [{**tree["comments"][0], "body": hidden}, *tree["comments"][1:]]
    for ancestors in expected:
      answer = model.fill(
        {**tree, "comments": comments}, top_k=size, ancestors=ancestors
      )[1]
      (found,) = (
        c["probability"]
        for c in answer["masks"][0]["candidates"]
        if c["token"] == f"▁{word}"
      )
      expected[ancestors] += np.log(found)
  score = model.score(tree)[1]
  assert score["tokens"] == counted > 1
  np.testing.assert_allclose(score["log_likelihood"], expected["true"], rtol=1e-4)
  np.testing.assert_allclose(score["without_ancestors"], expected["none"], rtol=1e-4)
  difference = score["log_likelihood"] - score["without_ancestors"]
  assert abs(difference) > 1e-3
  np.testing.assert_allclose(score["difference"], difference, atol=1e-3)


def test_masks_apart_hide_other_tokens_too_and_far_apart_none(model, plain):
  tree = plain[0]
  size = int(model.run.tokenizer.maskable.sum())
  words = tree["comments"][0]["body"].split()
  places = [i for i, word in enumerate(words) if not word.startswith("[")]
  expected = 0.0
  for first in range(2):
    hidden = [*words]
    for place in places[first::2]:
      hidden[place] = "<mask>"
    comments = [
      {**tree["comments"][0], "body": " ".join(hidden)},
      *tree["comments"][1:],
    ]
    masks = model.fill({**tree, "comments": comments}, top_k=size)[1]["masks"]
    assert len(masks) > 1
    for place, mask in zip(places[first::2], masks):
      (found,) = (
        c["probability"] for c in mask["candidates"] if c["token"] == f"▁{words[place]}"
      )
      expected += np.log(found)
  exact, apart, far = (model.score(tree, masks_apart=n)[1] for n in (None, 2, 1000))
  np.testing.assert_allclose(apart["log_likelihood"], expected, rtol=1e-4)
  assert apart["tokens"] == exact["tokens"] == far["tokens"]
  assert abs(apart["log_likelihood"] - exact["log_likelihood"]) > 1e-3
  for name in ("log_likelihood", "without_ancestors"):
    np.testing.assert_allclose(far[name], exact[name], rtol=1e-5)


@pytest.mark.parametrize("apart", [None, 2])
def test_copies_to_score_share_the_comments_above_them(model, plain, apart):
  made = mode_table.make("score", model.run, "true", {"masks_apart": apart})
  tree = made.read(model._tree(plain[0], "text"))
  packed = list(forests.fill(made.items(tree), made.shape))
  copies = [document.comment_of(node) for f in packed for document, node in f.targets]
  tokens = model.run.tokenizer.maskable[tree.nodes["tokens"]]
  maskable = np.add.reduceat(
    tokens, np.cumsum(tree.nodes["lengths"]) - tree.nodes["lengths"]
  )
  expected = maskable if apart is None else np.minimum(maskable, apart)
  np.testing.assert_array_equal(np.bincount(copies), expected)
  assert sum(len(f.predicted()) for f in packed) == tokens.sum()
  answered = set(tree.nodes["parents"].tolist()) - {-1}
  for forest in packed:
    encoded = [document.comment_of(node) for document, node in forest.slots]
    assert len(encoded) == len(set(encoded)) <= len(answered)
  assert len(copies) > 2 * len(answered)


def test_a_forest_is_filled_by_parts_of_what_does_not_fit_it_whole(model, plain):
  made = mode_table.make("score", model.run)
  trees = [made.read(model._tree(tree, "text")) for tree in plain]
  items = [item for tree in trees for item in made.items(tree)]
  packed = list(forests.fill(iter(items), made.shape))
  assert sum(len(f.targets) for f in packed) == sum(len(i.targets) for i in items)
  capacity = made.shape.decoder_rows * made.shape.decoder_length
  used = [(f.forest["decoder_segment_ids"] > 0).sum() / capacity for f in packed]
  assert len(used) > 3
  # What would still go into them is no longer than a comment.
  longest = max(item.target_lengths.max() for item in items)
  for f in packed[:-1]:
    in_rows = (f.forest["decoder_segment_ids"] > 0).sum(-1)
    slots_left = made.shape.target_slots - len(f.targets)
    assert slots_left == 0 or made.shape.decoder_length - in_rows.max() < longest


def test_progress_is_told_forest_by_forest(
  tmp_path, model_dir, plain, capsys, monkeypatch
):
  monkeypatch.setattr(progress, "_SECONDS", 0.0)
  file = made_runs.write(tmp_path / "trees.jsonl", plain)
  flags = [f"--model_dir={model_dir}", "--mode=score", "--chunk_trees=3"]
  assert main.main(["infer", *flags, "--input", file, f"--output={tmp_path}/out"]) == 0
  said = capsys.readouterr().out
  assert re.search(r"compiled in \d+\.\d s", said)
  told = [
    [int(n) for n in found] for found in re.findall(r"(\d+) of (\d+) comments", said)
  ]
  assert any(0 < count < of for count, of in told)
  assert all(count <= of for count, of in told)


def test_a_post_has_no_ancestors_to_explain_it(model, plain):
  for answers in model.score(plain):
    assert answers[0]["difference"] == 0


# ---- Attribution ---------------------------------------------------------------------


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


@pytest.mark.parametrize(
  ("objective", "apart", "said"),
  [
    ("mlm", 0, "masks_apart = 0: must be a whole number of at least 1"),
    ("mlm", 1.5, "masks_apart = 1.5: must be a whole number"),
    ("mlm", "8", "masks_apart = '8': must be a whole number"),
    ("clm", 8, "has no masks"),
  ],
)
def test_masks_apart_that_cannot_be_are_one_line(folder, model, objective, apart, said):
  made = model
  if objective == "clm":
    made = commentree.load(made_runs.make(folder / "causal", "clm"))
  with pytest.raises(UserError, match=said):
    made.score("so", masks_apart=apart)


def test_attribution_is_for_scores_alone(model_dir, capsys):
  flags = [f"--model_dir={model_dir}", "--input", "x.jsonl", "--output=y.jsonl"]
  assert main.main(["infer", "--mode=fill", "--attribution", *flags]) == (
    UserError.exit_code
  )
  assert "--attribution: is of no use with --mode=fill" in capsys.readouterr().err
