"""Samples on the page of `commentree report`."""

import json
import random

import pytest

import commentree
from commentree.launch.main import main
from commentree.launch.reports import samples
from commentree.tasks.trees.comment_tree import Comment, CommentTree
from commentree.tests.support.launch import made_runs

WORDS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  return made_runs.make(tmp_path_factory.mktemp("model"))


def tree(name, *parents):
  words = random.Random(name)
  comments = [
    Comment(f"{name}{i}", parent, None, f"<b> {' '.join(words.choices(WORDS, k=6))}", i)
    for i, parent in enumerate((-1, *parents))
  ]
  return CommentTree(name, comments)


def test_a_thread_is_shown_of_each_tree_that_has_one_and_again_the_same():
  empty = CommentTree("z", [Comment("z0", -1, None, "post", 0)])
  trees = [tree("a", 0, 0, 2, 3), empty, tree("b", 0), tree("c", 0, 1)]
  found = samples.choose(iter(trees), 2)
  assert [thread.id for thread in found] == ["a", "b"]
  assert found == samples.choose(iter(trees), 2)
  for thread in found:
    assert [comment.parent for comment in thread.comments] == [
      *range(-1, len(thread.comments) - 1)
    ]
    whole = {comment.id for each in trees for comment in each.comments}
    assert {comment.id for comment in thread.comments} <= whole
  drawn = {samples.choose(iter([tree(f"t{i}", 0, 0, 0)]), 1)[0].comments[-1].id[-1]
           for i in range(20)}  # fmt: skip
  assert drawn == {"1", "2", "3"}


def test_samples_are_what_score_and_fill_say(model):
  (thread,) = samples.choose(iter([tree("a", 0, 1, 2)]), 1)
  (sample,) = samples.read(model, [thread], lambda line: None)
  *_, scored = model.score(thread, attribution=True, masks_apart=samples.MASKS_APART)
  assert sample.loss == pytest.approx(-scored["log_likelihood"] / scored["tokens"])
  assert sample.without == pytest.approx(
    -scored["without_ancestors"] / scored["tokens"]
  )
  told = {a["comment"]: a["nats_per_token"] for a in scored["ancestors"]}
  assert [a.nats_per_token for a in sample.ancestors] == [
    told[comment.id] for comment in thread.comments[:-1]
  ]
  assert len(sample.guesses) == 3
  for guess in sample.guesses:
    assert sample.text[guess.start : guess.end] in WORDS
    assert len(guess.candidates) == 3


def test_the_page_shows_samples_and_takes_nothing_in_them_for_markup(
  model_dir, tmp_path, capsys
):
  given = tmp_path / "trees.jsonl"
  post = {"id": "p", "title": "<i>post</i>", "comments": []}
  post["comments"] = [{"id": "q", "parent_id": "p", "body": "<b>word words</b> here"}]
  given.write_text(json.dumps(post) + "\n")
  (model_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
  page = tmp_path / "page.html"
  flags = [f"--model_dir={model_dir}", f"--html={page}", "--samples"]
  assert main(["report", *flags, str(given)]) == 0
  told = page.read_text()
  assert "&lt;i&gt;post&lt;/i&gt;" in told
  assert told.count('class="above"') == 1
  assert told.count("<mark>") == told.count('class="guess"') == 3
  assert "<b>" not in told
  assert "<i>" not in told

  given.write_text('{"id": "p", "title": "x", "comments": []}\n')
  assert main(["report", *flags, str(given)]) == 2
  assert "holds no comment with words" in capsys.readouterr().err
  assert main(["report", *flags, str(given), "--num_samples=0"]) == 2
  assert "--num_samples=0: must be at least 1" in capsys.readouterr().err


def test_a_word_in_an_address_is_said_to_be_lost_in_cleaning(model):
  address = "https://example.com/alpha/beta/gamma"
  post, said = Comment("a", -1, None, "post", 0), []
  threads = [
    CommentTree("a", [post, Comment("b", 0, None, text, 1)])
    for text in (f"Yes: {address}", address)
  ]
  (sample,) = samples.read(model, threads, said.append)
  told = "".join(samples.render([sample]))
  assert ": lost in cleaning, as within an address</p>" in told
  assert said[-1] == "sample 2: left out, as cleaning leaves no token of b"


def test_a_page_that_cannot_be_written_is_refused_before_the_model_is_asked(
  model_dir, tmp_path, capsys, monkeypatch
):
  (model_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
  monkeypatch.setattr(samples, "read", pytest.fail)
  flags = [f"--model_dir={model_dir}", f"--html={tmp_path}", f"--samples={tmp_path}"]
  assert main(["report", *flags]) == 2
  assert f"--html={tmp_path}: cannot be written" in capsys.readouterr().err


def test_a_run_that_predicts_no_tokens_has_no_samples(tmp_path, capsys):
  model_dir = made_runs.make(
    tmp_path,
    "classify",
    **{"CommentLabelsConfig.source": "label", "CommentLabelsConfig.names": ["x", "y"]},
  )
  (model_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
  flags = [f"--model_dir={model_dir}", f"--html={tmp_path}/page.html"]
  assert main(["report", *flags, "--samples", str(tmp_path)]) == 2
  assert "are of runs that predict tokens" in capsys.readouterr().err


def test_a_causal_run_has_samples_without_guesses(tmp_path):
  model = commentree.load(made_runs.make(tmp_path, "clm"))
  (sample,) = samples.read(model, [tree("a", 0)], lambda line: None)
  assert sample.guesses == ()
  assert [a.nats_per_token is not None for a in sample.ancestors] == [True]
