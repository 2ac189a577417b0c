"""An inspection shows text as it reads, for every kind of vocabulary."""

import html
import io
import re

import pytest

from commentree.console import Console
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import (
  LabelsConfig,
  MarkersConfig,
  PreprocessingConfig,
)
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.inspection import html_page, inspecting, terminal
from commentree.tasks.inspection.views import InspectionConfig
from commentree.tasks.seqio_tasks.registry import CommentTreeTask
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.trees import markers
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span
from commentree.tasks.vocabulary import vocabularies
from commentree.tests.support.tasks.vocabulary_fixture import ALL_KINDS, some_texts

SENTENCE = some_texts(1)[0]
# What is unknown to each kind, it cannot show.
ODD = {
  "roberta": "ba 漢字 e\u0301 😀 (ko).",
  "byte_fallback": "ba 漢字 e\u0301 😀 (ko).",
  "byte_fallback_json": "ba 漢字 e\u0301 😀 (ko).",
  "bert": "ba, ko. ba!",
}


class OneTree(TreeSource):
  """A post and what is answered to it."""

  odd = SENTENCE

  def trees(self, split):
    comments = [Comment("p", -1, "ann", SENTENCE, None)]
    for number, text in enumerate([SENTENCE, self.odd]):
      span = (Span(0, len(text), "claim"),)
      comments.append(Comment(f"c{number}", 0, "bob", text, None, spans=span))
    yield CommentTree("p", comments)

  def signature(self, split):
    return {}


@pytest.fixture(scope="module", params=ALL_KINDS)
def inspect(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  config = MarkersConfig(max_users=3)
  source = ALL_KINDS[request.param](folder)
  path = folder / f"marked{source.suffix}"
  known = markers.all_markers(config)
  vocabularies.add_markers(source, path, known)
  tokenizer = vocabularies.Tokenizer(lambda: path, known)
  trees = OneTree()
  trees.odd = ODD.get(request.param, SENTENCE)

  def inspect(**settings):
    preprocessing = PreprocessingConfig(markers=config, **settings)
    task = CommentTreeTask("shown", trees, tokenizer, preprocessing)
    layout = ForestLayout(decoder_rows=8)
    view = inspecting.inspect_trees(task, InspectionConfig(count=1, layout=layout))
    file = io.StringIO()
    terminal.render(view, Console(file=file, width=1000))
    page = re.sub(r"(?s)<style>.*?</style>|<script>.*?</script>", "", _page(view))
    return view, file.getvalue(), page

  inspect.odd = trees.odd  # type: ignore[attr-defined]
  return inspect


def _page(view):
  return html_page.page(view)


def said(page):
  """The paragraphs of tokens on a page, as they read."""
  found = re.findall(r'<p class="said">(.*?)</p>', page)
  return [html.unescape(re.sub("<s>.*?</s>|<[^>]*>", "", text)) for text in found]


def test_text_reads_as_it_was_written(inspect):
  _, printed, page = inspect(objective=ObjectiveConfig("clm"))
  for text in (SENTENCE, inspect.odd):
    assert f"<user_1> {text}\n" in printed
    assert any(line.endswith(f"<user_1> {text}") for line in said(page))
  assert not re.search("[▁Ġ�]|##|<0x|</w>", printed + "".join(said(page)))


def test_masked_tokens_are_where_they_are_in_the_text(inspect):
  view, printed, page = inspect()
  assert "«" in printed
  shown = printed.partition("\n")[2].partition("masks")[0]
  for comment, text in zip(view.trees[0].comments[1:], (SENTENCE, inspect.odd)):
    (part,) = comment.parts
    written = "".join(token.written for token in part.tokens)
    if "<0x" not in written:
      assert written == f"<user_1> {text}"
  bare = re.sub("≠[^»]*|[«»=␣]", "", shown)
  assert f"<user_1> {SENTENCE}" in bare
  assert not re.search("[▁Ġ�]|##|</w>", bare + "".join(said(page)))


def test_labels_stand_at_whole_characters(inspect):
  labels = LabelsConfig(("claim",))
  view, printed, page = inspect(objective=ObjectiveConfig("tag"), labels=labels)
  for comment, text in zip(view.trees[0].comments[1:], (SENTENCE, inspect.odd)):
    (part,) = comment.parts
    shown = [token.written.partition("/") for token in part.predicted]
    assert "".join(word.strip() for word, _, _ in shown) == text.replace(" ", "")
    assert {label for _, _, label in shown} <= {"B-claim", "I-claim"}
  assert not re.search("[▁Ġ�]|##|<0x|</w>", printed + "".join(said(page)))
