"""What an inspection shows of each objective: what is read, what is predicted."""

import io

import pytest

from commentree.console import Console
from commentree.launch.main import main
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  CommentLabelsConfig,
  CommentNumbersConfig,
  LabelsConfig,
  MarkersConfig,
  PreprocessingConfig,
  SubtreeConfig,
)
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.inspection import html_page, inspecting, terminal
from commentree.tasks.inspection.views import InspectionConfig
from commentree.tasks.seqio_tasks.registry import CommentTreeTask
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span, Translation
from commentree.tasks.vocabulary import sentencepiece_backend, vocabularies

TEXTS = ["so it is", "one two three four five six seven", "no", "it is"]


class OneTree(TreeSource):
  """A chain of comments."""

  def trees(self, split):
    comments = [Comment("p", -1, "ann", "post", None)]
    for number, text in enumerate(TEXTS):
      comments.append(
        Comment(
          f"c{number}", number, "bob", text, None,
          spans=(Span(3, 5, "claim"),) if text == "so it is" else (),
          label=["for", "against", None, "for"][number],
          score=[3, None, -2, 0][number],
          language="en",
          translation=Translation("de", "eins zwei") if number == 1 else None,
        )
      )  # fmt: skip
    yield CommentTree("p", comments)

  def signature(self, split):
    return {}


@pytest.fixture(scope="module")
def inspect(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "words.model"
  words = " ".join([*TEXTS, "post eins zwei"]).split()
  markers_config = MarkersConfig(max_users=3)
  sentencepiece_backend.write_word_vocabulary(
    list(dict.fromkeys(words)), path, markers.all_markers(markers_config), 9
  )
  tokenizer = vocabularies.Tokenizer(lambda: path)

  def inspect(*, length=32, max_comment_tokens=32, **settings):
    preprocessing = PreprocessingConfig(
      subtrees=SubtreeConfig(max_comment_tokens=max_comment_tokens),
      markers=markers_config,
      **settings,
    )
    task = CommentTreeTask("shown", OneTree(), tokenizer, preprocessing)
    lengths = {"encoder": length, "decoder": length}
    layout = ForestLayout(decoder_rows=4)
    config = InspectionConfig(count=1, lengths=lengths, layout=layout)
    return inspecting.inspect_trees(task, config)

  return inspect


def printed(view):
  file = io.StringIO()
  terminal.render(view, Console(file=file, width=200))
  return file.getvalue()


def said(tokens):
  return "".join(token.written for token in tokens).split()


def parts(view):
  return [comment.parts[0] for comment in view.trees[0].comments if comment.parts]


def test_clm_reads_from_the_start_and_predicts_to_the_end(inspect):
  view = inspect(objective=ObjectiveConfig("clm"))
  for part, text in zip(parts(view), TEXTS, strict=True):
    assert said(part.tokens) == ["<pad>", "<user_1>", *text.split()]
    assert said(part.predicted) == [*text.split(), "</s>"]
    assert part.shown == len(text.split()) + 1
  assert "reads <pad> <user_1> so it is" in printed(view)
  assert "predicts so it is </s>" in printed(view)
  assert "clm" in printed(view)
  assert view.to_predict() == ("17 tokens", "to predict of 4 targets")
  assert {c.tokens_cut for c in view.trees[0].comments} == {0}
  page = html_page.page(view)
  assert '<p class="part">predicts</p>' in page
  assert "reads &lt;mask&gt;" not in page


def test_clm_of_a_comment_cut_off_shows_no_end(inspect):
  view = inspect(objective=ObjectiveConfig("clm"), max_comment_tokens=6)
  part = parts(view)[1]
  assert said(part.predicted) == ["one", "two", "three", "four", "five"]
  assert part.shown == 6
  assert view.trees[0].comments[2].tokens_cut == 2


def test_span_corruption_shows_what_is_left_and_the_spans_behind_it(inspect):
  view = inspect(objective=ObjectiveConfig("span_corruption"))
  for part, text in zip(parts(view), TEXTS, strict=True):
    ((prefix, sign),) = part.breaks
    assert sign == "‖"
    left, behind = part.tokens[:prefix], part.tokens[prefix:]
    assert behind[0].read.strip() == "<pad>"
    assert said(behind[1:]) == said(part.predicted[:-1])
    assert part.shown == len(text.split()) + 1
    spans = "".join(t.written for t in part.predicted).split("<extra_id_")
    whole = "".join(
      spans[int(t.written.strip()[10:-1]) + 1].partition(">")[2].rstrip()
      if "<extra_id_" in t.written
      else t.written
      for t in left
    )
    assert whole == f"<user_1> {text}"
  assert " ‖ <pad> <extra_id_0>" in printed(view)
  assert {c.tokens_cut for c in view.trees[0].comments} == {0}


def test_tlm_shows_both_languages_in_one_comment(inspect):
  view = inspect(objective=ObjectiveConfig("tlm", languages=("en", "de")))
  plain, translated = parts(view)[:2]
  assert plain.breaks == ((0, "en:"),)
  assert translated.breaks == ((0, "en:"), (8, "de:"))
  assert said(translated.tokens)[-2:] == ["eins", "zwei"]
  assert translated.predicted == ()
  assert "translated to de" in printed(view)
  assert "masks" in printed(view)
  assert {c.tokens_cut for c in view.trees[0].comments} == {0}


def test_labels_are_shown_as_what_is_predicted(inspect):
  view = inspect(objective=ObjectiveConfig("tag"), labels=LabelsConfig(("claim",)))
  assert [said(p.predicted) for p in parts(view)] == [["it/B-claim"], [], [], []]
  assert view.to_predict() == ("17 labels", "to predict of 4 targets")
  labels = CommentLabelsConfig("label", ("for", "against"))
  view = inspect(objective=ObjectiveConfig("classify"), comment_labels=labels)
  shown = {
    c.index: [said(p.predicted) for p in c.parts] for c in view.trees[0].comments
  }
  assert [shown[i] for i in (1, 2, 3, 4)] == [[["for"]], [["against"]], [], [["for"]]]
  assert "predicts against" in printed(view)


def test_numbers_are_shown_as_what_is_predicted(inspect):
  numbers = CommentNumbersConfig("score", mean=1.0, standard_deviation=2.0)
  view = inspect(objective=ObjectiveConfig("regress"), comment_numbers=numbers)
  shown = {
    c.index: [said(p.predicted) for p in c.parts] for c in view.trees[0].comments
  }
  learnt = [[["3", "(learnt", "as", "1)"]], [], [["-2", "(learnt", "as", "-1.5)"]]]
  assert [shown[i] for i in (1, 2, 3)] == learnt
  assert view.to_predict() == ("3 numbers", "to predict of 3 targets")
  assert "predicts 3 (learnt as 1)" in printed(view)
  as_it_is = CommentNumbersConfig("score")
  view = inspect(objective=ObjectiveConfig("regress"), comment_numbers=as_it_is)
  assert [said(p.predicted) for p in parts(view)] == [["3"], ["-2"], ["0"]]


def test_the_command_shows_an_objective(tmp_path, capsys):
  small = ["--count=1", "--decoder_rows=4", f"--cache_dir={tmp_path}"]
  assert main(["inspect", "--objective=span_corruption", *small]) == 0
  assert "‖ <pad> <extra_id_0>" in capsys.readouterr().out
  assert main(["inspect", "--objective=tlm", *small]) == 2
  assert "ObjectiveConfig.languages is missing" in capsys.readouterr().err
  assert main(["inspect", "--objective=tag", *small]) == 2
  assert "LabelsConfig.names is missing" in capsys.readouterr().err
  labels = ["--comment_labels", "deleted_next", "kept", "lost"]
  assert main(["inspect", "--objective=classify", *labels, *small]) == 0
  assert "predicts kept" in capsys.readouterr().out
