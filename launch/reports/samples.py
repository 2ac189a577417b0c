"""Comments of a few trees under a run's model: what it predicts, and by what.

Of each sample some words are hidden, and what the model puts in their places is shown;
and how much worse it predicts the comment's tokens where one comment above is hidden
from it (leave one out, as `commentree infer --mode=score --attribution`), with tokens
that stand apart masked together.
"""

from __future__ import annotations

import dataclasses
import html
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from commentree.errors import UserError
from commentree.tasks.trees.comment_tree import Comment, CommentTree

if TYPE_CHECKING:
  from commentree.launch.inference.model import LoadedModel

_MASK = "\N{MEDIUM SMALL WHITE CIRCLE}mask\N{MEDIUM SMALL WHITE CIRCLE}"
_HIDDEN = 3  # words of a comment, at most
# As in `score`: exact scores of long threads take minutes a sample.
MASKS_APART = 8
_GUESSES = 3
_WORD = re.compile(r"[^\W\d_]{3,}")
_LONGEST_SHOWN = 600  # characters of a comment

CSS = """
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.7rem 0.9rem; margin: 0.8rem 0; }
.sample p { overflow-wrap: anywhere; }
.above { display: grid; grid-template-columns: 4.6rem 5rem 1fr; gap: 0 0.7rem;
  align-items: start; color: var(--soft); margin: 0.25rem 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { .above { grid-template-columns: 3.6rem 2rem 1fr; } }
.above .nats { text-align: right; font-variant-numeric: tabular-nums; }
.above svg { width: 100%; height: 0.7rem; margin-top: 0.42rem; }
.above rect.more { fill: var(--series-0); } .above rect.less { fill: var(--series-1); }
mark { background: none; color: inherit; border-bottom: 2px solid var(--series-2); }
.guess { color: var(--soft); font-size: 0.85rem; }
"""


@dataclasses.dataclass(frozen=True)
class Ancestor:
  """A comment above a sample.

  Attributes:
    text: as written.
    nats_per_token: what the sample's tokens lose on average where it alone is hidden;
      None if the model does not see it.
  """

  text: str
  nats_per_token: float | None


@dataclasses.dataclass(frozen=True)
class Guess:
  """A hidden word and what the model puts there.

  Attributes:
    start: of the word in the text.
    end: likewise.
    candidates: tokens and their probabilities, the likeliest first.
    why: there are none, if so.
  """

  start: int
  end: int
  candidates: tuple[tuple[str, float], ...]
  why: str | None


@dataclasses.dataclass(frozen=True)
class Sample:
  """A comment, what is above it, and what the model makes of it.

  Attributes:
    tree: its tree's id.
    comment: its id.
    text: as written.
    ancestors: the post first, its parent last.
    loss: of its tokens given all those, nats a token.
    without: likewise given none.
    guesses: of hidden words, by their places.
  """

  tree: str
  comment: str
  text: str
  ancestors: tuple[Ancestor, ...]
  loss: float
  without: float
  guesses: tuple[Guess, ...]


def choose(trees: Iterator[CommentTree], number: int) -> list[CommentTree]:
  """Returns threads, the comment to show last, each of another tree.

  The comment is drawn among those of the tree that have words, the same at every call.

  Args:
    trees: where to look; read as far as is needed.
    number: of threads wanted.
  """
  found: list[CommentTree] = []
  for tree in trees:
    with_words = [
      index
      for index, comment in enumerate(tree.comments)
      if comment.parent >= 0 and _WORD.search(comment.text)
    ]
    if with_words:
      drawn = random.Random(f"{tree.id}").choice(with_words)
      found.append(_thread(tree, drawn))
      if len(found) == number:
        break
  return found


def _thread(tree: CommentTree, index: int) -> CommentTree:
  """Returns the tree less all but a comment and those above it."""
  path: list[Comment] = []
  while index >= 0:
    path.append(tree.comments[index])
    index = tree.comments[index].parent
  comments = [
    dataclasses.replace(comment, parent=place - 1)
    for place, comment in enumerate(reversed(path))
  ]
  return dataclasses.replace(tree, comments=comments)


def read(
  model: LoadedModel, threads: Sequence[CommentTree], say: Callable[[str], None]
) -> list[Sample]:
  """Has the model score each thread's last comment and fill in some of its words.

  Args:
    model: the run's.
    threads: from `choose`.
    say: tells the user a line.
  """
  samples: list[Sample] = []
  apart = MASKS_APART if _fills(model) else None
  for number, thread in enumerate(threads, start=1):
    say(f"sample {number} of {len(threads)}: tree {thread.id}")
    *above, comment = thread.comments
    *_, scored = model.score(thread, attribution=True, masks_apart=apart)
    if not scored["tokens"]:
      say(f"sample {number}: left out, as cleaning leaves no token of {comment.id}")
      continue
    counts = {each["comment"]: each["nats_per_token"] for each in scored["ancestors"]}
    samples.append(
      Sample(
        thread.id,
        comment.id,
        comment.text,
        tuple(Ancestor(each.text, counts.get(each.id)) for each in above),
        -scored["log_likelihood"] / scored["tokens"],
        -scored["without_ancestors"] / scored["tokens"],
        tuple(_guesses(model, thread)),
      )
    )
  return samples


def check(model: LoadedModel) -> None:
  """Makes sure that a run's model can score.

  Raises:
    UserError: if not.
  """
  from commentree.launch.inference.modes import mode_table

  able = mode_table.able(model.run.config)
  if "score" not in able:
    raise UserError(
      "--samples: are of runs that predict tokens; this one can"
      f" {', '.join(able)}: leave it out"
    )


def _fills(model: LoadedModel) -> bool:
  """Whether a model predicts masked tokens."""
  from commentree.launch.inference.modes import mode_table

  return "fill" in mode_table.able(model.run.config)


def _guesses(model: LoadedModel, thread: CommentTree) -> Iterator[Guess]:
  """Yields what the model puts in place of some words of a thread's last comment."""
  if not _fills(model):
    return
  *above, comment = thread.comments
  words = list(_WORD.finditer(comment.text))
  drawn = random.Random(comment.id).sample(words, min(_HIDDEN, len(words)))
  chosen = sorted(drawn, key=lambda word: word.start())
  text, after = "", 0
  for word in chosen:
    text += comment.text[after : word.start()] + _MASK
    after = word.end()
  masked = dataclasses.replace(comment, text=text + comment.text[after:])
  hidden = dataclasses.replace(thread, comments=[*above, masked])
  *_, filled = model.fill(hidden, top_k=_GUESSES, mask=_MASK)
  for word, answer in zip(chosen, filled["masks"] or ()):
    candidates = answer["candidates"] or ()
    yield Guess(
      word.start(),
      word.end(),
      tuple((each["token"], each["probability"]) for each in candidates),
      answer.get("why"),
    )


def render(samples: Sequence[Sample]) -> Iterator[str]:
  """Yields the part of the page that shows them, as HTML."""
  yield "<h2>Samples</h2>\n"
  yield (
    '<p class="soft">Beside each comment above: how much worse, in nats a token, the'
    " model predicts the last comment where that one alone is hidden (below 0:"
    f" better; of masked tokens every {MASKS_APART}th is asked for at a time). It is no"
    " proof of content: of that the paired differences above tell."
    " Underlined: words that were hidden together, and the likeliest tokens there."
    "</p>\n"
  )
  # One scale for all of them.
  counts = [a.nats_per_token or 0 for sample in samples for a in sample.ancestors]
  most = max(map(abs, counts), default=0)
  for sample in samples:
    yield '<div class="sample">\n'
    yield (
      f'<p class="soft">{_escape(sample.tree)} / {_escape(sample.comment)}:'
      f" {sample.loss:.3f} nats a token given all above it,"
      f" {sample.without:.3f} given nothing</p>\n"
    )
    for ancestor in sample.ancestors:
      yield _ancestor(ancestor, most)
    yield f"<p>{_marked(sample)}</p>\n"
    for guess in sample.guesses:
      shown = ", ".join(
        f"{_escape(token)} {share:.0%}" for token, share in guess.candidates
      )
      word = _escape(sample.text[guess.start : guess.end])
      yield f'<p class="guess">{word}: {shown or _escape(guess.why or "")}</p>\n'
    yield "</div>\n"


def _ancestor(ancestor: Ancestor, most: float) -> str:
  nats = ancestor.nats_per_token
  shown = "not seen" if nats is None else f"{nats:+.3f}"
  width = 100 * abs(nats or 0) / most if most else 0
  kind = "less" if (nats or 0) < 0 else "more"
  return (
    f'<div class="above"><span class="nats">{shown}</span>'
    '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
    f'<rect class="{kind}" width="{width:.1f}" height="8"/></svg>'
    f"<span>{_escape(_shortened(ancestor.text))}</span></div>\n"
  )


def _marked(sample: Sample) -> str:
  """The sample's text, its hidden words marked."""
  text, pieces, after = sample.text, [], 0
  end = max([_LONGEST_SHOWN, *(guess.end for guess in sample.guesses)])
  for guess in sample.guesses:
    pieces += [
      _escape(text[after : guess.start]),
      f"<mark>{_escape(text[guess.start : guess.end])}</mark>",
    ]
    after = guess.end
  pieces.append(_escape(text[after:end]) + ("…" if len(text) > end else ""))
  return "".join(pieces)


def _shortened(text: str) -> str:
  if len(text) <= _LONGEST_SHOWN:
    return text
  return f"{text[:_LONGEST_SHOWN]}…"


def _escape(text: str) -> str:
  return html.escape(text)
