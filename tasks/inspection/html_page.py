"""An inspection as one page of HTML that needs nothing else, not even a network.

Users' text goes through `escape`, always. The page's content security policy
allows its own script, known by its hash, and no other: were something to slip through,
it would not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Sequence

from commentree import local_files
from commentree.errors import refused_write
from commentree.tasks.inspection.page_assets import CSS, JAVASCRIPT
from commentree.tasks.inspection.row_maps import hue, name_of, row_maps
from commentree.tasks.inspection.views import (
  EXPLAINED,
  CommentView,
  Inspection,
  TokenView,
  TreeView,
  count,
  letter,
)

_INDENTED_DEPTHS = 14
_DRAWING_WIDTH = 800
_MAX_DRAWING_HEIGHT = 420
_MARGIN = 18

# Control characters, and those that turn the direction of all text behind them.
_DISORDERLY = re.compile(
  "[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)

COUNTS = (
  '<span><u class="counts" style="--share: 100%">+1.000</u> nats a token lost without'
  " that ancestor</span>"
)

_KINDS = {
  "masked": "to predict; the model reads <mask>",
  "random": "to predict; the model reads a random token",
  "kept": "to predict; the model reads it as it is",
}


def write(inspection: Inspection, path: str | os.PathLike[str]) -> None:
  """Writes the page; it appears whole or not at all.

  Raises:
    UserError: if the file cannot be written; a StorageError on a full disk.
  """
  target = pathlib.Path(path)
  content = page(inspection).encode("utf-8", "replace")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    local_files.write_bytes(target, content, sole_writer=False)
  except OSError as error:
    raise refused_write(
      error,
      f"--html={target}: cannot be written ({error.strerror}); give another place",
    ) from error


def page(inspection: Inspection) -> str:
  """The page's HTML."""
  config = inspection.config
  digest = base64.b64encode(hashlib.sha256(JAVASCRIPT.encode()).digest()).decode()
  policy = (
    "default-src 'none'; style-src 'unsafe-inline';"
    f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
  )
  run = (
    f"{inspection.task} · {config.split} · seed {config.seed} · epoch {config.epoch} ·"
    f" rows of {config.lengths['decoder']} and {config.lengths['encoder']} tokens"
  )
  forests = "".join(row_maps(inspection))
  return "".join(
    [
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
      f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
      '<meta name="referrer" content="no-referrer">\n',
      f"<title>{escape(inspection.task)}: trees as the model sees them</title>\n",
      f'<style>{CSS}</style>\n</head>\n<body>\n<div class="page">\n',
      "<header>\n<h1>Trees as the model sees them</h1>\n",
      f'<p class="lead">{_lead(inspection.objective)} Point at a comment, a dot or a'
      " block to see which.</p>\n",
      f'<p class="run">{escape(run)}</p>\n',
      _tiles(inspection),
      _legend(inspection.objective, scored=inspection.scored),
      '</header>\n<p id="status" class="hidden" role="status"></p>\n',
      f'<div class="columns{"" if forests else " alone"}">\n<main>\n',
      *(_tree(number, tree) for number, tree in enumerate(inspection.trees)),
      f"</main>\n{forests}</div>\n",
      _figures(inspection),
      f"</div>\n<script>{JAVASCRIPT}</script>\n</body>\n</html>\n",
    ]
  )


def escape(text: str) -> str:
  """Text as it may stand in a page, between tags or in an attribute."""
  return html.escape(_DISORDERLY.sub("\ufffd", text))


def _lead(objective: str) -> str:
  explained = EXPLAINED.get(objective)
  if explained is None:
    return (
      "Every comment predicts its masked tokens from its own words and from the vectors"
      " of the comments above it."
    )
  return (
    f"{escape(explained[0].upper() + explained[1:])}. It sees the vectors of the"
    " comments above it."
  )


def _tiles(inspection: Inspection) -> str:
  kinds = inspection.tokens()
  chosen = kinds["masked"] + kinds["random"] + kinds["kept"]
  maskable = max(1, chosen + kinds["plain"])
  size = sum(tree.size for tree in inspection.trees)
  shown = sum(len(tree.comments) for tree in inspection.trees)
  deepest = max((tree.max_depth for tree in inspection.trees), default=0)
  fill = inspection.fill
  masks = (
    f"{chosen / maskable:.1%}",
    f"of {maskable:,} tokens to predict: {kinds['masked']:,}"
    f" masked, {kinds['random']:,} random, {kinds['kept']:,} kept",
  )
  tiles = [
    (
      count(size, "comment"),
      f"in {count(len(inspection.trees), 'tree')}, depth up to {deepest:,}"
      + (f"; {shown:,} of them shown" if shown < size else ""),
    ),
    inspection.to_predict() if inspection.objective in EXPLAINED else masks,
  ]
  for side, share in (("decoder", fill.decoder), ("encoder", fill.encoder)):
    if fill.forests:
      tiles.append(
        (
          f"{1 - share:.1%}",
          f"padding in {side} rows; it would be"
          f" {1 - inspection.row_each[side]:.0%} with a row for each comment",
        )
      )
  cells = "".join(
    f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
    for value, what in tiles
  )
  return f'<div class="tiles">{cells}</div>\n'


def _legend(objective: str, *, scored: bool) -> str:
  def example(written: str, read: str, kind: str, text: str) -> str:
    token = _token(TokenView(written, read, kind))  # type: ignore[arg-type]
    return f'<span><span class="said">{token}</span> {text}</span>'

  masks = (
    example("word", "<mask>", "masked", "reads &lt;mask&gt;")
    + example("word", "other", "random", "reads another")
    + example("word", "word", "kept", "is kept, and predicted")
    + example("<user_0>", "<user_0>", "marker", "is never masked")
  )
  return (
    '<div class="legend">'
    + ("" if objective in EXPLAINED else masks)
    + (COUNTS if scored else "")
    + "<span>click pins · <kbd>↑</kbd> <kbd>↓</kbd> next · <kbd>←</kbd> parent ·"
    " <kbd>→</kbd> reply · <kbd>Esc</kbd> lets go</span></div>\n"
  )


def _tree(number: int, tree: TreeView) -> str:
  facts = (
    f"{count(tree.size, 'comment')} · depth {tree.max_depth} ·"
    f" {count(tree.subtrees, 'subtree')}"
  )
  hidden = tree.size - len(tree.comments)
  more = (
    f'<p class="more">… {count(hidden, "further comment")}; --max_comments shows'
    " more</p>\n"
    if hidden
    else ""
  )
  comments = "".join(_comment(number, comment) for comment in tree.comments)
  return (
    f'<section class="tree" style="--hue: {hue(number)}">\n<header>'
    f'<span class="letter">{letter(number)}</span>'
    f"<h2>{escape(tree.id)}</h2><p>{facts}</p></header>\n"
    f'{_drawing(number, tree)}<ol class="comments">\n{comments}</ol>\n'
    f"{more}</section>\n"
  )


def _places(tree: TreeView) -> list[tuple[float, int]]:
  """(column, depth) of each comment: leaves side by side, parents above the middle."""
  number = {comment.index: i for i, comment in enumerate(tree.comments)}
  columns = [0.0] * len(tree.comments)
  spans: list[list[float]] = [[] for _ in tree.comments]
  leaves = itertools.count()
  inner = {comment.parent for comment in tree.comments}
  own = [
    float(next(leaves)) if comment.index not in inner else 0.0
    for comment in tree.comments
  ]
  for place in range(len(tree.comments) - 1, -1, -1):
    comment = tree.comments[place]
    below = spans[place]
    columns[place] = (min(below) + max(below)) / 2 if below else own[place]
    if comment.parent >= 0:
      spans[number[comment.parent]].append(columns[place])
  return [(columns[i], comment.depth) for i, comment in enumerate(tree.comments)]


def _drawing(number: int, tree: TreeView) -> str:
  """The tree as dots and lines: from the post down, or rightwards if it is narrow."""
  if len(tree.comments) < 2:
    return ""
  places = _places(tree)
  wide = max(column for column, _ in places)
  deep = max(depth for _, depth in places)
  sideways = deep > 2 * wide
  columns, levels = (
    (_MAX_DRAWING_HEIGHT, _DRAWING_WIDTH)
    if sideways
    else (_DRAWING_WIDTH, _MAX_DRAWING_HEIGHT)
  )
  across = min(26.0, (columns - 2 * _MARGIN) / max(1.0, wide))
  down = min(30.0, (levels - 2 * _MARGIN) / max(1, deep))
  radius = max(1.6, min(5.0, 0.42 * min(across, down * 1.6)))
  breadth, length = across * wide, down * deep
  left = (_DRAWING_WIDTH - (length if sideways else breadth)) / 2
  height = (breadth if sideways else length) + 2 * _MARGIN

  def point(column: float, level: float) -> str:
    x, y = (level, column) if sideways else (column, level)
    return f"{left + x:.1f} {_MARGIN + y:.1f}"

  at = {
    comment.index: (across * column, down * depth)
    for comment, (column, depth) in zip(tree.comments, places)
  }
  lines, dots = [], []
  for comment in tree.comments:
    name = name_of(number, comment.index)
    column, level = at[comment.index]
    if comment.parent >= 0:
      above, top = at[comment.parent]
      middle = (top + level) / 2
      lines.append(
        f'<path data-c="{name}" d="M{point(above, top)}C{point(above, middle)}'
        f' {point(column, middle)} {point(column, level)}"/>'
      )
    quiet = "" if comment.parts else ' class="quiet"'
    x, y = point(column, level).split()
    dots.append(f'<circle{quiet} data-c="{name}" cx="{x}" cy="{y}" r="{radius:.1f}"/>')
  return (
    f'<svg class="drawing" viewBox="0 0 {_DRAWING_WIDTH} {height:.0f}"'
    f' style="max-height: {height:.0f}px" aria-hidden="true">'
    f"{''.join(lines)}{''.join(dots)}</svg>\n"
  )


def _comment(number: int, comment: CommentView) -> str:
  name = name_of(number, comment.index)
  seen = [a for part in comment.parts for a in part.ancestors]
  sees = dict((name_of(number, a.comment), a.distance) for a in reversed(seen))
  slots = dict.fromkeys(
    f"{part.forest}.{a.slot}" for part in comment.parts for a in part.ancestors
  )
  nats = {name_of(number, a.comment): comment.counted(a) for a in seen}
  listed = " ".join(
    f"{ancestor}:{hops}:{nats[ancestor]}" for ancestor, hops in reversed(sees.items())
  )
  author = comment.author or "unknown author"
  summary = f"{name} by {author}, depth {comment.depth}, sees " + (
    ", ".join(f"{a} {count(hops, 'hop')} up" for a, hops in reversed(sees.items()))
    or "nothing"
  )
  indent = min(comment.depth, _INDENTED_DEPTHS)
  parent = (
    "" if comment.parent < 0 else f' data-parent="{name_of(number, comment.parent)}"'
  )
  return (
    f'<li style="--depth: {indent}"><article class="comment" data-c="{name}"{parent}'
    f' data-sees="{listed}" data-slots="{" ".join(slots)}"'
    f' data-summary="{escape(summary)}">'
    f'<header><button type="button" class="pick" aria-pressed="false">{name}</button>'
    f'<span class="who">{escape(author)}</span>'
    f"<span>depth {comment.depth}</span>{_notes(comment)}</header>"
    f"{_labels(comment)}{_said(number, comment)}{_changes(comment)}</article></li>\n"
  )


def _notes(comment: CommentView) -> str:
  notes = comment.notes()
  if comment.replies:
    notes.append(count(comment.replies, "reply", "replies"))
  if not comment.parts:
    notes.append("context only" if comment.context else "empty")
  if comment.tokens_cut:
    notes.append(f"{count(comment.tokens_cut, 'token')} cut off")
  return "".join(f'<span class="note">{escape(note)}</span>' for note in notes)


def _labels(comment: CommentView) -> str:
  """The text as written, with its labels around what they are on."""
  if not comment.labelled:
    return ""
  pieces: list[str] = []
  opened: list[str] = []
  for stretch in comment.labelled:
    for name, goes_on in stretch.opened:
      hue = zlib.crc32(name.encode("utf-8", "replace")) % 360  # on every page the same
      shown = "…" if goes_on else escape(name)
      pieces.append(f'<mark style="--hue: {hue}"><b>{shown}</b> ')
      opened.append(name)
    pieces.append(escape(stretch.text))
    for _ in range(stretch.closed):
      ended = escape(opened.pop())
      pieces.append(f'<span class="hidden"> (end of {ended})</span></mark>')
  number = sum(not label.goes_on for s in comment.labelled for label in s.opened)
  return (
    f"<details open><summary>{count(number, 'label')}</summary>"
    f'<p class="labelled">{"".join(pieces)}</p></details>'
  )


def _said(number: int, comment: CommentView) -> str:
  said = []
  most = max((abs(nats) for nats in comment.counts.values()), default=0.0)
  for place, part in enumerate(comment.parts, 1):
    if len(comment.parts) > 1:
      said.append(f'<p class="part">part {place} of {len(comment.parts)}</p>')
    said.append(_tokens(part.tokens, part.breaks))
    if part.predicted:
      said.append(f'<p class="part">predicts</p>{_tokens(part.predicted)}')
    seen = ", ".join(
      f"<b>{name_of(number, ancestor.comment)}</b> "
      + ("earlier" if not ancestor.distance else f"{ancestor.distance} up")
      + (f" in {slots} parts" if slots > 1 else "")
      + _bar(comment.counted(ancestor), most)
      for ancestor, slots in part.ancestor_groups()
    )
    said.append(
      f'<p class="sees">sees {seen or "nothing: the null vector"} <span>· forest'
      f" {part.forest + 1}, row {part.row}, column {part.column}</span></p>"
    )
  if comment.context:
    said.append(_tokens(comment.context))
  return "".join(said)


def _bar(nats: str, most: float) -> str:
  """What an ancestor counts: a number on a bar, the longest of the comment's full."""
  if not nats:
    return ""
  share = abs(float(nats)) / most if most else 0.0
  sign = " against" if float(nats) < 0 else ""
  return f' <u class="counts{sign}" style="--share: {share:.0%}">{nats}</u>'


def _tokens(tokens: Sequence[TokenView], breaks: Sequence[tuple[int, str]] = ()) -> str:
  begins = dict(breaks)
  pieces = []
  for place, token in enumerate(tokens):
    if place in begins:
      pieces.append(f" <b>{escape(begins[place])}</b> ")
    pieces.append(_token(token))
  return f'<p class="said">{"".join(pieces).strip()}</p>'


def _token(token: TokenView) -> str:
  written, read = map(escape, token.texts())
  if token.kind == "plain":
    return token.space + (f"<i>{written}</i>" if written else "")
  if token.kind == "random":
    written = f"{read}<s>{written}</s>"
  note = f' title="{escape(_KINDS[token.kind])}"' if token.kind in _KINDS else ""
  return f'{token.space}<i class="{token.kind}"{note}>{written}</i>'


def _changes(comment: CommentView) -> str:
  if not comment.changes:
    return ""
  tags = {"delete": "del", "insert": "ins"}
  pieces = [
    f"<{tags[operation]}>{escape(text)}</{tags[operation]}>"
    if operation in tags
    else escape(text)
    for operation, text in comment.changes
  ]
  left_out = (
    f" … {count(comment.left_out, 'character')} more" if comment.left_out else ""
  )
  number = sum(operation != "equal" for operation, _ in comment.changes)
  return (
    f"<details><summary>cleaned: {count(number, 'change')}</summary>"
    f'<p class="changes">{" ".join(pieces)}{left_out}</p></details>'
  )


def _figures(inspection: Inspection) -> str:
  shape, forests = inspection.shape, inspection.forests
  used = [
    ("decoder rows", shape.decoder_rows, None),
    ("encoder rows", shape.encoder_rows, None),
    ("target slots", shape.target_slots, [len(f.decoder) for f in forests]),
    ("encoder slots", shape.encoder_slots, [len(f.encoder) for f in forests]),
    (
      "masked positions",
      shape.masked_groups * shape.masked_per_group,
      [f.masked for f in forests],
    ),
    ("most ancestors seen", shape.max_ancestors, None),
  ]
  layout = [
    (
      name,
      f"{size:,}"
      if used is None
      else f"{', '.join(f'{n:,}' for n in used)} of {size:,}",
    )
    for name, size, used in used
  ]
  if inspection.ran_out:
    layout.append(("the data ended before the rows were full", "a run begins it anew"))
  tables = [("A forest, one example of a batch", layout)]
  if labels := inspection.labels():
    tables.append(("Labels shown", [(x, f"{n:,}") for x, n in sorted(labels.items())]))
  if inspection.cleaned:
    cleaned = [(kind, f"{number:,}") for kind, number in inspection.cleaned.items()]
    tables.append(("Cleaned in the comments shown", cleaned))
  if inspection.read_counts:
    read_counts = [
      (f"{what} {fate}", f"{number:,}") for what, fate, number in inspection.read_counts
    ]
    tables.append(("What became of all that was read", read_counts))
  return (
    '<footer class="figures">'
    + "".join(
      f"<table><caption>{escape(title)}</caption>"
      + "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in rows
      )
      + "</table>"
      for title, rows in tables
    )
    + "</footer>\n"
  )
