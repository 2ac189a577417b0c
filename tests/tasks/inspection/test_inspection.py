"""What an inspection shows is what a run would read, and shows it safely."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from commentree.console import Console
from commentree.errors import UserError
from commentree.tasks.config.preprocessing import (
  CleaningConfig,
)
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.inspection import (
  html_page,
  inspecting,
  labelled_text,
  page_assets,
  terminal,
)
from commentree.tasks.inspection.views import InspectionConfig
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
LENGTHS = {"encoder": 32, "decoder": 32}
EVIL = (
  "\x1b[31m\u202e[bold]markup[/bold] </script><script>alert(1)</script>"
  " <img src=x onerror=alert(2)> \"'&amp; http://example.org/evil"
)


class ListSource(TreeSource):
  """Trees from an iterable, which says how many were taken."""

  def __init__(self, trees):
    self._trees = trees
    self.taken = 0
    super().__init__()

  def trees(self, split):
    for tree in self._trees:
      self.taken += 1
      yield tree

  def signature(self, split):
    return {}


def make_tree(parents, name="t", words=6, seed=0):
  rng = np.random.default_rng(seed)
  return CommentTree(
    id=name,
    comments=[
      Comment(f"c{i}", parent, f"author{i % 5}", " ".join(rng.choice(WORDS, words)), i)
      for i, parent in enumerate(parents)
    ],
  )


def random_trees(count, size=20):
  rng = np.random.default_rng(1)
  return [
    make_tree([-1, *(int(rng.integers(0, i)) for i in range(1, size))], f"t{k}", seed=k)
    for k in range(count)
  ]


def inspect(task, **settings):
  defaults = {
    "lengths": LENGTHS,
    "layout": ForestLayout(decoder_rows=16, max_ancestors=3),
    "max_comments": 1000,
  }
  return inspecting.inspect_trees(task, InspectionConfig(**{**defaults, **settings}))


def printed(view, width=80, color=None):
  file = io.StringIO()
  console = Console(
    file=file, width=width, color_system=color, force_terminal=color is not None
  )
  terminal.render(view, console)
  return file.getvalue()


def test_every_comment_is_a_target_once_and_the_post_is_context(view, trees):
  for tree, shown in zip(trees, view.trees):
    assert sorted(c.index for c in shown.comments) == list(range(len(tree.comments)))
    for comment in shown.comments:
      assert len(comment.parts) == (comment.index > 0)
      assert bool(comment.context) == (comment.index == 0)


def test_a_target_sees_its_nearest_ancestors_and_the_post(view, trees):
  for tree, shown in zip(trees, view.trees):
    for comment in shown.comments[1:]:
      above = []
      at = tree.comments[comment.index].parent
      while at >= 0:
        above.append((at, len(above) + 1))
        at = tree.comments[at].parent
      expected = above if len(above) <= 3 else [*above[:2], above[-1]]
      seen = [(a.comment, a.distance) for a in comment.parts[0].ancestors]
      assert seen == expected


def test_masks_are_those_that_a_run_draws_whatever_is_skipped(make_task, trees):
  task = make_task(trees)
  objective, builder = task.objective(), task.subtree_builder()
  subtrees = list(itertools.chain.from_iterable(map(builder, trees)))
  drawn = {}
  for index, subtree in enumerate(subtrees):
    masked = objective(subtree, 32, 5, 2, index)
    ends = np.cumsum(subtree["lengths"])
    for node in np.flatnonzero(subtree["is_target"]):
      tokens = slice(ends[node] - subtree["lengths"][node], ends[node])
      key = subtree["tree_id"].decode(), int(subtree["node_ids"][node])
      drawn[key] = [masked[n][tokens].tolist() for n in ("input_tokens", "is_masked")]

  def id_of(text):
    word = text.replace(" ", "▁")
    return task.tokenizer.piece_to_id(word.strip("▁") if "<" in word else word)

  for settings in ({"skip": 4}, {"tree_id": "t5", "count": 1}):
    view = inspect(make_task(trees), seed=5, epoch=2, **settings)
    for tree in view.trees:
      for comment in tree.comments[1:]:
        tokens = comment.parts[0].tokens
        read, chosen = drawn[tree.id, comment.index]
        assert [id_of(t.read) for t in tokens] == read
        predicted = [t.kind in ("masked", "random", "kept") for t in tokens]
        assert predicted == [bool(c) for c in chosen]


def test_replacements_are_told_apart_and_what_was_written_is_known(view, trees):
  kinds = view.tokens()
  assert all(kinds[k] for k in ("plain", "marker", "masked", "random", "kept"))
  for tree, shown in zip(trees, view.trees):
    for comment in shown.comments[1:]:
      tokens = comment.parts[0].tokens
      assert tokens[0].kind == "marker"
      written = "".join(t.written for t in tokens[1:]).strip()
      assert written == tree.comments[comment.index].text
      for token in tokens:
        assert (token.read == "<mask>") == (token.kind == "masked")
        if token.kind in ("plain", "marker", "kept"):
          assert token.read == token.written


def test_blocks_are_where_the_rows_have_the_comments(view):
  shape = view.shape
  for forest in view.forests:
    for side in ("decoder", "encoder"):
      rows = getattr(shape, f"{side}_rows"), getattr(shape, f"{side}_length")
      cells = np.zeros(rows, int)
      for block in forest.blocks(side):
        cells[block.row, block.column : block.column + block.length] += 1
      assert cells.max() == 1
      assert cells.mean() == pytest.approx(getattr(forest.fill, side))
  for number, tree in enumerate(view.trees):
    for comment in tree.comments:
      for part in comment.parts:
        forest = view.forests[part.forest]
        block = forest.decoder[part.slot - 1]
        assert (block.tree, block.comment) == (number, comment.index)
        assert (block.row, block.column) == (part.row, part.column)
        assert block.length == len(part.tokens)
        for seen in part.ancestors:
          block = forest.encoder[seen.slot - 1]
          assert (block.tree, block.comment) == (number, seen.comment)


def test_a_long_comment_in_chunks_sees_its_earlier_parts(make_task):
  task = make_task(
    [make_tree([-1, 0, 1], words=20)], long_comments="chunk", max_comment_tokens=8
  )
  comment = inspect(task).trees[0].comments[1]
  assert len(comment.parts) == 3
  assert comment.tokens_cut == 0
  distances = [[a.distance for a in part.ancestors] for part in comment.parts]
  assert distances[1][0] == 0
  assert distances[2][:2] == [0, 0]
  written = " ".join(t.written for part in comment.parts for t in part.tokens)
  assert len(written.split()) == 1 + 20


def test_tokens_that_are_cut_off_are_counted(make_task):
  view = inspect(make_task([make_tree([-1, 0], words=50)]))
  assert [c.tokens_cut for c in view.trees[0].comments] == [19, 19]


words = st.lists(st.sampled_from(["a", "b", "c", "dd", "<url>"]), max_size=30)


@given(words, words)
def test_changes_lead_from_the_raw_words_to_the_clean_ones(raw, clean):
  changes = inspecting.compare(" ".join(raw), "\n".join(clean))
  if raw == clean:
    assert changes == ()
    return
  before = " ".join(text for operation, text in changes if operation != "insert")
  after = " ".join(text for operation, text in changes if operation != "delete")
  assert before.split() == raw
  assert after.split() == clean


def test_a_text_of_a_million_words_is_compared_in_no_time():
  changes = inspecting.compare("http://x.org a " * 500_000, "<url> a " * 500_000)
  assert changes[0] == ("delete", "http://x.org")
  assert sum(len(text) for _, text in changes) < 10_000


def test_what_was_cleaned_is_shown_beside_the_raw_text(make_task):
  tree = make_tree([-1, 0])
  tree.comments[1] = Comment("c", 0, "ann", "see http://example.org/x &gt; bal", 1)
  view = inspect(make_task([tree]))
  comment = view.trees[0].comments[1]
  assert ("delete", "http://example.org/x &gt;") in comment.changes
  assert ("insert", "<url> >") in comment.changes
  assert comment.clean == "see <url> > bal"
  assert view.cleaned["urls"] == 1


def test_what_was_copied_from_a_comment_above_is_shown_as_taken_out(make_task):
  tree = make_tree([-1, 0])
  words = " ".join(tree.comments[0].text.split()[:3])
  tree.comments[1] = Comment("c", 0, "ann", f"bal {words} bal", 1)
  view = inspect(make_task([tree], cleaning=CleaningConfig(copied_quotations=3)))
  comment = view.trees[0].comments[1]
  assert comment.clean == "bal <startq> <endq> bal"
  assert ("delete", words) in comment.changes
  assert view.cleaned["copied quotations"] == 1


def test_no_more_trees_are_read_than_needed(make_task):
  endless = make_task(make_tree([-1, 0, 1, 1], f"t{i}") for i in itertools.count())
  view = inspect(endless, skip=2)
  assert [tree.id for tree in view.trees] == ["t2", "t3", "t4"]
  assert endless.tree_source.taken < 300
  assert view.fill.decoder > 0.8
  assert not view.ran_out


@pytest.mark.parametrize(
  "parents",
  [[-1, *range(10_000)], [-1] + [0] * 5000],
  ids=["a chain of 10,000", "5,000 siblings"],
)
def test_extreme_trees_are_shown_in_part(make_task, parents):
  view = inspect(make_task([make_tree(parents, words=3)]), max_comments=60)
  assert view.trees[0].size == len(parents)
  assert [c.index for c in view.trees[0].comments] == list(range(60))
  assert all(len(c.parts) == 1 for c in view.trees[0].comments[1:])
  assert f"{len(parents) - 60:,} further comments" in printed(view)
  assert f"{len(parents) - 60:,} further comments" in html_page.page(view)


def test_a_post_without_comments_is_shown(make_task):
  view = inspect(make_task([make_tree([-1])]))
  assert view.forests == ()
  assert "context only" in printed(view)
  assert "context only" in html_page.page(view)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"tree_id": "nobody"}, "--tree_id=nobody: no such tree"),
    ({"skip": 8}, "--skip=8: passes over all there is .* 8 trees"),
  ],
)
def test_a_tree_that_is_not_there_is_named(make_task, trees, settings, message):
  with pytest.raises(UserError, match=message):
    inspect(make_task(trees), **settings)


def test_data_without_trees_is_a_users_error(make_task):
  with pytest.raises(UserError, match="no trees in split 'train'"):
    inspect(make_task([]))


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_everything_without_colours(view, width):
  text = printed(view, width)
  lines = text.splitlines()
  assert max(map(len, lines)) <= width
  for number, tree in enumerate(view.trees):
    name = "ABC"[number]
    assert f"tree {name} · {tree.id} · 20 comments" in text
    for comment in tree.comments:
      assert f"{name}{comment.index} depth {comment.depth} {comment.author}" in text
  for token in (t for c in view.trees[0].comments for p in c.parts for t in p.tokens):
    word, read = token.written.strip(), token.read.strip()
    marks = {"masked": f"«{word}»", "random": f"«{word}≠{read}»", "kept": f"«{word}=»"}
    assert marks.get(token.kind, word) in text
  assert f"{1 - view.fill.decoder:.1%} padding" in text
  assert "sees A0 (1 hop, the post)" in text


@pytest.fixture
def evil_view(make_task):
  tree = make_tree([-1, 0], name=EVIL)
  tree.comments[:] = [
    Comment("p", -1, EVIL, EVIL, 0),
    Comment("c", 0, EVIL, EVIL + " bal bem", 1),
  ]
  return inspect(make_task([tree]))


def test_no_users_text_controls_the_terminal(evil_view):
  text = printed(evil_view)
  assert "\x1b" not in text
  assert "\u202e" not in text
  assert "[bold]markup[/bold]" in text


class Page(html.parser.HTMLParser):
  """Elements, attributes and text of a page."""

  def __init__(self, source):
    super().__init__()
    self.tags = []
    self.text = []
    self.feed(source)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text.append(data)


def test_no_users_text_becomes_part_of_the_page(evil_view):
  source = html_page.page(evil_view)
  page = Page(source)
  names = [tag for tag, _ in page.tags]
  assert names.count("script") == 1
  assert "img" not in names
  assert not any(a.startswith("on") for _, attrs in page.tags for a in attrs)
  assert "<script>alert(1)</script>" in "".join(page.text)
  assert "\x1b" not in source
  assert "\u202e" not in source


def test_the_page_asks_for_nothing_from_elsewhere_and_runs_its_own_script_only(view):
  page = Page(html_page.page(view))
  for tag, attributes in page.tags:
    assert tag not in ("link", "img", "iframe", "object", "base")
    assert not {"src", "href", "srcset", "action"} & set(attributes)
  assert "url(" not in page_assets.CSS
  assert "@import" not in page_assets.CSS
  policy = next(a["content"] for t, a in page.tags if t == "meta" and "content" in a)
  digest = hashlib.sha256(page_assets.JAVASCRIPT.encode()).digest()
  assert "default-src 'none'" in policy
  assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_the_page_links_a_comment_to_what_it_sees_and_to_its_blocks(view):
  page = Page(html_page.page(view))
  comments = {a["data-c"]: a for t, a in page.tags if t == "article"}
  slots = {a["data-slot"]: a["data-c"] for _, a in page.tags if "data-slot" in a}
  drawn = {a["data-c"] for t, a in page.tags if t == "circle"}
  for name, tree in zip("ABC", view.trees):
    for comment in tree.comments:
      own = f"{name}{comment.index}"
      seen = [f"{name}{a.comment}" for p in comment.parts for a in p.ancestors]
      linked = [each.split(":")[0] for each in comments[own]["data-sees"].split()]
      assert linked == seen
      assert [slots[s] for s in comments[own]["data-slots"].split()] == seen
      assert own in drawn
  blocks = [a for _, a in page.tags if a.get("data-side") == "decoder"]
  assert {a["data-c"] for a in blocks} == {n for n in comments if n[1:] != "0"}


def test_a_page_that_cannot_be_written_is_a_users_error(view, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="--html="):
    html_page.write(view, tmp_path / "file" / "page.html")


SPANS = st.lists(
  st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from("abc")),
  max_size=6,
).map(lambda spans: [Span(*span) for span in spans])


@given(st.text(max_size=10), SPANS, st.sampled_from([1, 5, 99]))
@example("abcdefgh", [Span(0, 4, "a"), Span(2, 6, "b"), Span(3, 8, "c")], 99)
def test_labels_stand_around_what_they_are_on_and_nothing_else_is_changed(
  text, spans, limit
):
  stretches = labelled_text.cut(text, spans, limit)
  text = text[:limit]
  inside = [s for s in spans if s.start < min(s.end, len(text))]
  assert "".join(s.text for s in stretches) == (text if inside else "")
  assert all(stretch.text for stretch in stretches)
  over = [[] for _ in text]  # names open at each character
  opened, place, begun = [], 0, 0
  for stretch in stretches:
    opened += [label.name for label in stretch.opened]
    begun += sum(not label.goes_on for label in stretch.opened)
    for _ in stretch.text:
      over[place] = sorted(opened)
      place += 1
    del opened[len(opened) - stretch.closed :]
  assert opened == []
  assert begun == len(inside)
  for place, names in enumerate(over):
    assert names == sorted(s.label for s in inside if s.start <= place < s.end)


@pytest.fixture
def labelled_view(make_task):
  words = " ".join(WORDS[:6]) + EVIL
  bounds = [len(" ".join(WORDS[:i])) for i in range(7)]
  spans = (
    Span(0, bounds[4], "claim"),
    Span(bounds[1] + 1, bounds[3], "premise"),
    Span(bounds[4] + 1, bounds[5], EVIL),
    Span(bounds[6], len(words), "evil"),
  )
  tree = make_tree([-1, 0, 1])
  tree.comments[1] = dataclasses.replace(
    tree.comments[1], text=words, spans=spans, label=EVIL, reply_deleted=True
  )
  return inspect(make_task([tree]))


def test_labels_are_named_on_the_terminal_with_and_without_colours(labelled_view):
  plain = printed(labelled_view, width=200)
  first, second, third, fourth, fifth, sixth = WORDS[:6]
  shown = f"claim‹{first} premise‹{second} {third}› {fourth}›"
  assert f"labels: {shown} " in plain
  assert f"{fifth}› " in plain
  assert f"{sixth}evil‹" in plain
  assert "claim 1, premise 1" in plain
  assert f"· label: {terminal.printable(EVIL)} · a reply was deleted" in plain
  colored = printed(labelled_view, width=200, color="standard")
  assert "\x1b" not in plain
  assert "\u202e" not in plain
  assert "\x1b[31m\u202e" not in colored
  assert plain.count("labels") == 2  # comments without any have no such line


def test_labels_are_named_on_the_page_for_eyes_and_for_ears(labelled_view):
  page = html_page.page(labelled_view)
  assert page.count("<mark ") == page.count("</mark>") == 4
  assert f"<b>claim</b> {WORDS[0]} <mark" in page
  assert "(end of premise)</span></mark>" in page
  assert "<script>alert" not in page
  assert "<img" not in page
  assert "<summary>4 labels</summary>" in page
  assert f'<span class="note">label: {html_page.escape(EVIL)}</span>' in page
