"""What `infer --mode=score` found, beside the trees that an inspection shows."""

import json

import pytest

from commentree.errors import UserError
from commentree.tasks.inspection import html_page, scores
from commentree.tests.tasks.inspection.test_inspection import Page, printed


def lines_of(view):
  """A line for each target; an ancestor so many hops up counts 1 / hops."""
  for tree in view.trees:
    ids = [c.id for c in sorted(tree.comments, key=lambda c: c.index)]
    for comment in tree.comments:
      seen = [a for part in comment.parts for a in part.ancestors]
      if seen:
        yield {
          "tree": tree.id,
          "comment": comment.id,
          "log_likelihood": -9.0,
          "without_ancestors": -12.0,
          "difference": 3.0,
          "tokens": 6,
          "ancestors": [
            {
              "comment": ids[a.comment],
              "distance": a.distance,
              "nats_per_token": (-1) ** a.distance / a.distance,
            }
            for a in seen
          ],
        }


@pytest.fixture
def path(view, tmp_path):
  target = tmp_path / "scores.jsonl"
  others = {"tree": "elsewhere", "comment": "c0", "difference": None, "tokens": 0}
  rows = [others, *lines_of(view)]
  target.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return target


def test_each_comment_has_what_its_line_says(view, path):
  scored = scores.with_scores(view, path)
  assert scored.scored
  assert not view.scored
  for tree in scored.trees:
    for comment in tree.comments:
      seen = {a.comment: a.distance for p in comment.parts for a in p.ancestors}
      assert comment.counts == {
        ancestor: pytest.approx((-1) ** hops / hops) for ancestor, hops in seen.items()
      }
      assert comment.saved == (0.5 if seen else None)


def test_the_terminal_and_the_page_show_it(view, path):
  scored = scores.with_scores(view, path)
  text = printed(scored, 120)
  assert "sees A0 (1 hop, the post, -1.000 nats)" in text
  assert "ancestors save 0.500 nats a token" in text
  content = html_page.page(scored)
  assert '<u class="counts against" style="--share: 100%">-1.000</u>' in content
  assert '<u class="counts" style="--share: 50%">+0.500</u>' in content
  sees = [a["data-sees"] for t, a in Page(content).tags if t == "article"]
  assert any(":2:+0.500" in each for each in sees)
  assert "lost without" in content
  assert "lost without" not in html_page.page(view)


def test_the_post_has_nothing_above_it_that_could_save(view, tmp_path):
  target = tmp_path / "post.jsonl"
  tree = view.trees[0]
  line = {"tree": tree.id, "comment": "c0", "difference": 0.0, "tokens": 3}
  target.write_text(json.dumps({**line, "ancestors": []}) + "\n")
  post = scores.with_scores(view, target).trees[0].comments[0]
  assert post.notes() == tree.comments[0].notes()


def test_without_attribution_what_the_thread_saves_is_shown(view, tmp_path):
  target = tmp_path / "plain.jsonl"
  first = next(lines_of(view))
  del first["ancestors"]
  target.write_text(json.dumps(first) + "\n")
  scored = scores.with_scores(view, target)
  assert not scored.scored
  assert "ancestors save 0.500 nats a token" in printed(scored, 120)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "No such file"),
    ("", "has no score of a comment shown"),
    ('{"tree": "x", "comment": "y", "difference": 1, "tokens": 1}\n', "has no score"),
    ("no JSON\n", "line 1 is not of `commentree infer --mode=score"),
    ("[1]\n", "line 1 is not of"),
    ('{"tree": "t0", "comment": "c1", "filled": "text"}\n', "line 1 is not of"),
    (
      '{"tree": "t0", "comment": "c1", "difference": 1, "tokens": 1, "ancestors": [3]}',
      "line 1 is not of",
    ),
    ('{"tree": "t0", "comment": ["c1"], "difference": 1, "tokens": 1}', "has no score"),
    (
      '{"tree": "t0", "comment": "c1", "difference": "a", "tokens": 1}',
      "line 1 is not of",
    ),
  ],
)
def test_a_file_of_something_else_is_named_in_one_line(
  view,
  tmp_path,
  content,
  message,
):
  target = tmp_path / "scores.jsonl"
  if content is not None:
    target.write_text(content)
  with pytest.raises(UserError, match=r"--scores=.*scores\.jsonl: ") as caught:
    scores.with_scores(view, target)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
