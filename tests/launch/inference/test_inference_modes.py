"""Replies, tags and labels, by models that are untrained."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import commentree
from commentree.errors import UserError
from commentree.launch import main
from commentree.launch.inference.modes import tag
from commentree.tasks.config.preprocessing import CleaningConfig, CommentNumbersConfig
from commentree.tasks.subtrees import spans
from commentree.tasks.trees import cleaning
from commentree.tests.support.launch import made_runs

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("modes")


# ---- generate ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(folder):
  return commentree.load(made_runs.make(folder, "clm"))


@pytest.fixture(scope="module")
def trees(folder, writer):
  return made_runs.trees(folder / "clm", 4)


DRAWN = {"num_replies": 2, "temperature": 1.5, "max_tokens": 6}


@pytest.fixture(scope="module")
def replies(writer, trees):
  return writer.generate(trees, reply_to="all", seed=1, **DRAWN)


def texts_of(answers):
  return [reply["text"] for answer in answers for reply in answer["replies"]]


def test_every_comment_is_replied_to_as_often_as_asked(replies, trees):
  for answers, tree in zip(replies, trees):
    assert len(answers) == 1 + len(tree["comments"])
    for answer in answers:
      assert len(answer["replies"]) == 2
      for reply in answer["replies"]:
        assert len(reply["text"].split()) <= reply["tokens"] <= 5
        assert reply["log_likelihood"] < 0
        assert "<" not in reply["text"]
  assert len(set(texts_of(itertools.chain(*replies)))) > 10


def test_a_reply_depends_on_its_seed_and_thread_and_not_on_what_else_is_asked(
  writer, trees, replies
):
  alone = writer.generate(trees[1], reply_to="all", seed=1, **DRAWN)
  assert texts_of(alone) == texts_of(replies[1])
  other = writer.generate(trees[1], reply_to="all", seed=2, **DRAWN)
  assert texts_of(other) != texts_of(replies[1])


def test_leaves_posts_and_marked_comments_may_be_asked_for(writer, trees):
  tree = trees[0]
  answered = {comment["parent_id"] for comment in tree["comments"]}

  def asked(tree, **options):
    answers = writer.generate(tree, max_tokens=6, **options)
    return {a["comment"] for a in answers if a["replies"] is not None}

  ids = {tree["id"], *(comment["id"] for comment in tree["comments"])}
  assert asked(tree) == ids - answered
  assert asked(tree, reply_to="post") == {tree["id"]}
  first, *rest = tree["comments"]
  marked = {**tree, "comments": [{**first, "body": f"{first['body']} <reply>"}, *rest]}
  assert asked(marked, reply_to="marked") == {first["id"]}


def test_a_mark_is_no_part_of_the_text(writer, trees):
  first, *rest = trees[0]["comments"]
  marked = {
    **trees[0],
    "comments": [{**first, "body": f"{first['body']} <reply>"}, *rest],
  }
  with_mark = writer.generate(marked, reply_to="marked", max_tokens=6)
  without = writer.generate(trees[0], reply_to="all", max_tokens=6)
  (reply,) = [a["replies"] for a in with_mark if a["replies"]]
  assert reply in [a["replies"] for a in without]


def test_who_writes_makes_a_difference(writer, trees):
  tree = trees[0]
  made = [
    writer.generate(tree, reply_to="post", max_tokens=6, author=author)[0]["replies"][0]
    for author in (None, tree["author"], "somebody new")
  ]
  assert made[0] == made[2]
  assert made[0]["log_likelihood"] != made[1]["log_likelihood"]


def test_log_likelihood_of_a_causal_model_is_that_of_its_reply(writer, trees):
  tree = {**trees[0], "comments": []}
  (answer,) = writer.generate(tree, reply_to="post", max_tokens=6, author="x")
  (reply,) = answer["replies"]
  assert reply["tokens"] > 0
  body = {"id": "r", "parent_id": tree["id"], "author": "x", "body": reply["text"]}
  scored = writer.score({**tree, "comments": [body]})[1]
  if reply["ended"]:
    assert scored["tokens"] == reply["tokens"] + 1
    np.testing.assert_allclose(
      scored["log_likelihood"], reply["log_likelihood"], rtol=1e-3
    )
  else:
    # Scored is the end as well.
    assert scored["log_likelihood"] < reply["log_likelihood"]


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"top_p": 2.0}, "--top_p = 2.0: must be"),
    ({"temperature": 0}, "--temperature = 0: must be"),
    ({"max_tokens": 0}, "--max_tokens = 0: must be"),
    ({"beam_width": 2, "num_replies": 3}, "beam_width"),
    ({"beam_width": 2, "temperature": 0.5}, "temperature"),
    ({"reply_to": "nobody"}, "--reply_to=nobody"),
    ({"seed": -1}, "--seed=-1"),
    ({"mask": "x"}, "--mask: is of no use with --mode=generate"),
  ],
)
def test_settings_of_replies_that_cannot_be_are_named(writer, trees, options, said):
  with pytest.raises(UserError, match=said):
    writer.generate(trees[0], **options)


# ---- tag and classify ----------------------------------------------------------------


def test_a_span_is_told_in_the_text_as_given(folder):
  run = made_runs.make(folder, "tag", **{"LabelsConfig.names": ("claim",)})
  model = commentree.load(run)
  text = "see   https://a.b/c &amp; so\n\n> what you said\nit [fact] lemo"
  tree = {"id": "t", "title": text, "author": "ann", "comments": []}
  (answer,) = model.tag(tree)
  assert answer["spans"]
  for span in answer["spans"]:
    assert span["label"] == "claim"
    assert 0 < span["score"] <= 1
    if span["start"] is None:
      assert span["text"] in ("<startq>", "<endq>")  # nowhere in the text as given
    else:
      assert span["text"] == text[span["start"] : span["end"]].strip()


def test_labels_of_a_comment_sum_to_one_and_the_likeliest_is_its_label(folder):
  names = ("for", "against", "neither")
  run = made_runs.make(
    folder,
    "classify",
    **{"CommentLabelsConfig.source": "label", "CommentLabelsConfig.names": names},
  )
  source = made_runs.write(folder / "posts.jsonl", made_runs.trees(run, 3))
  output = folder / "labels.jsonl"
  flags = [f"--model_dir={run}", "--mode=classify", f"--output={output}"]
  assert main.main(["infer", *flags, "--input", source]) == 0
  for line in map(made_runs.read_line, output.read_text().splitlines()):
    found = line["probabilities"]
    assert tuple(found) == names
    assert line["label"] == max(found, key=found.get)
    np.testing.assert_allclose(sum(found.values()), 1, atol=1e-4)


def test_a_number_is_told_in_the_scale_of_the_data(folder, capsys):
  source = None
  found = []
  constants = {"transform": "log", "mean": 2.0, "standard_deviation": 3.0}
  for name, settings, loss in (
    ("as_learnt", {}, "squared"),
    ("restored", constants, "squared"),
    ("ranked", constants, "ranking"),
  ):
    run = made_runs.make(
      folder / name,
      "regress",
      **{
        "CommentNumbersConfig.source": "score",
        "ModelConfig.regression_loss": loss,
        **{f"CommentNumbersConfig.{field}": x for field, x in settings.items()},
      },
    )
    source = source or made_runs.write(folder / "scored.jsonl", made_runs.trees(run, 3))
    output = folder / f"{name}.jsonl"
    flags = [f"--model_dir={run}", "--mode=regress", f"--output={output}"]
    assert main.main(["infer", *flags, "--input", source]) == 0
    assert ("this run ranks" in capsys.readouterr().out) == (loss == "ranking")
    lines = map(made_runs.read_line, output.read_text().splitlines())
    found.append({line["comment"]: line["number"] for line in lines})
  learnt, restored, ranked = found
  config = CommentNumbersConfig("score", **constants)
  assert len(set(learnt.values())) > 3
  for name, number in learnt.items():
    assert restored[name] == pytest.approx(config.restored(number), rel=1e-3)
  assert ranked == pytest.approx(learnt, rel=1e-3)
  # The same from Python, given comments alone or with their thread.
  model = commentree.load(folder / "as_learnt" / "regress")
  post = {"id": "p", "title": "lemo", "comments": []}
  reply = {"id": "c", "parent_id": "p", "author": "ann", "body": "lemo"}
  with_reply = {**post, "comments": [reply]}
  (alone,), (again, answer) = model.regress(post), model.regress(with_reply)
  assert again["number"] == pytest.approx(alone["number"], rel=1e-3)
  _, hidden = model.regress(with_reply, ancestors="none")
  assert answer["number"] != hidden["number"]


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    ("O B-a I-a O", [(1, 3, "a")]),
    ("B-a B-a I-a", [(0, 1, "a"), (1, 3, "a")]),
    ("I-a I-a O I-b", [(0, 2, "a"), (3, 4, "b")]),
    ("B-a I-b", [(0, 1, "a"), (1, 2, "b")]),
    ("B-a O I-a", [(0, 1, "a"), (2, 3, "a")]),
    ("O O", []),
  ],
)
def test_spans_are_cut_as_seqeval_does(names, expected):
  assert tag.spans_of(names.split()) == expected


PARTS = st.sampled_from(
  [
    *("so", "it", "naïve", "é\u200bt", "word^1", "(see", "<b>", "&gt;", "&amp;"),
    *("https://a.b/c?d=e", "[this](http://x.y/z)", "www.x.com/y)"),
    *("\n", "\n\n", "\n> ", "  "),
  ]
)


@given(st.lists(PARTS, max_size=12).map(" ".join))
def test_words_that_cleaning_leaves_are_found_where_they_were(text):
  config = CleaningConfig()
  clean = cleaning.clean_text(text, config)
  words = spans.words_through_cleaning(text, clean, config)
  assert words == sorted(words)
  for one, two in itertools.pairwise(words):
    assert one[0][1] <= two[0][0]
    assert one[1][1] <= two[1][0]
  for plain in ("so", "it", "naïve"):
    found = [w for w in words if text[slice(*w[0])] == plain]
    assert len(found) == text.split().count(plain)
    for _, (start, end) in found:
      assert clean[start:end] == plain
      place = tag.as_given(start, end, clean, text, words)
      assert text[slice(*place)] == plain
