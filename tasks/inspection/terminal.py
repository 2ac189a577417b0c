"""An inspection on the terminal, readable with and without colours.

Characters carry all information and colours only stress it, so that nothing is lost in
a pipe or a file. Users' text never reaches the terminal raw: it could hold escape
sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from commentree.console import Console
from commentree.tasks.inspection.labelled_text import LabelledText
from commentree.tasks.inspection.views import (
  EXPLAINED,
  BlockView,
  CommentView,
  ForestView,
  Inspection,
  PartView,
  Side,
  TokenView,
  TreeView,
  count,
  letter,
)

_TREE_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_INDENTED_DEPTHS = 10
_LABEL_COLORS = ("yellow", "cyan", "magenta", "green", "blue", "red")
_TOKEN_LINES = 3
_LABEL_LINES = 6
_CHANGE_LINES = 2
_ROWS = 12
_FORESTS = 2
_MIN_TEXT_WIDTH = 24

# They part or join letters, and the people of an emoji; a terminal does nothing else.
_JOINERS = "\u200c\u200d"

# Around the answer: what is to be predicted, and how the model reads it.
_BRACKETS = {"masked": "«{w}»", "random": "«{w}≠{r}»", "kept": "«{w}=»"}
_STYLES = {
  "plain": "",
  "marker": "dim",
  "masked": "bold reverse",
  "random": "bold red",
  "kept": "bold green",
}


def render(inspection: Inspection, console: Console) -> None:
  """Prints an inspection."""
  config = inspection.config
  console.print(
    Text.assemble(
      (printable(inspection.task), "bold"),
      f" · {config.split} · seed {config.seed} · epoch {config.epoch}",
    )
  )
  console.print(_legend(inspection.objective))
  names = sorted(inspection.labels())
  for number, tree in enumerate(inspection.trees):
    console.print()
    console.print(_tree_title(number, tree))
    for line in _tree_lines(tree, number, console.width, names):
      console.print(line)
  for number, forest in enumerate(inspection.forests[:_FORESTS]):
    console.print()
    for renderable in _forest(number, forest, inspection, console.width):
      console.print(renderable)
  if len(inspection.forests) > _FORESTS:
    hidden = count(len(inspection.forests) - _FORESTS, "further forest")
    console.print(Text(f"… {hidden}, in full on a page (--html)", "dim italic"))
  console.print()
  console.print(summary(inspection))


def summary(inspection: Inspection) -> RenderableType:
  """The figures: masks, padding, cleaning, and what became of all that was read."""
  table = Table(box=None, pad_edge=False, show_header=False)
  table.add_column(style="bold", no_wrap=True)
  table.add_column()
  table.add_row(*_to_predict(inspection))
  shares = {"decoder": inspection.fill.decoder, "encoder": inspection.fill.encoder}
  for side, share in shares.items() if inspection.forests else ():
    table.add_row(
      f"{side} rows",
      f"{1 - share:.1%} padding; a row for each comment:"
      f" {1 - inspection.row_each[side]:.1%}",
    )
  if inspection.ran_out:
    table.add_row("", "the data ended before the rows were full; a run begins it anew")
  if labels := inspection.labels():
    table.add_row(
      "labels", ", ".join(f"{printable(x)} {n:,}" for x, n in labels.items())
    )
  if inspection.cleaned:
    replaced = (f"{kind} {number:,}" for kind, number in inspection.cleaned.items())
    table.add_row("cleaned", ", ".join(replaced))
  for what, read_counts in itertools.groupby(
    inspection.read_counts, lambda fate: fate[0]
  ):
    counts = ", ".join(f"{number:,} {fate}" for _, fate, number in read_counts)
    table.add_row(what if what in ("repaired", "missing") else f"{what} read", counts)
  return table


def _to_predict(inspection: Inspection) -> tuple[str, str]:
  kinds = inspection.tokens()
  if inspection.objective in EXPLAINED:
    return inspection.objective, " ".join(inspection.to_predict())
  chosen = kinds["masked"] + kinds["random"] + kinds["kept"]
  return (
    "masks",
    f"{chosen:,} of {chosen + kinds['plain']:,} tokens to predict"
    f" ({chosen / max(1, chosen + kinds['plain']):.1%}):"
    f" {kinds['masked']:,} read <mask>, {kinds['random']:,} a random token,"
    f" {kinds['kept']:,} themselves; {kinds['marker']:,} markers never are",
  )


def printable(text: str) -> str:
  """Text on one line, without characters that a terminal would obey."""
  return "".join(
    c if c.isprintable() or c in _JOINERS else "\ufffd" for c in " ".join(text.split())
  )


def _legend(objective: str) -> Text:
  if objective in EXPLAINED:
    return Text(EXPLAINED[objective])

  def example(kind: str, written: str, read: str) -> Text:
    return _token(TokenView(written, read, kind))  # type: ignore[arg-type]

  return Text.assemble(
    "tokens to predict: ",
    example("masked", "word", "<mask>"),
    " reads <mask>, ",
    example("random", "word", "other"),
    " reads other, ",
    example("kept", "word", "word"),
    " reads itself",
  )


def _style(tree: int) -> str:
  return _TREE_COLORS[tree % len(_TREE_COLORS)]


def _tree_title(number: int, tree: TreeView) -> RenderableType:
  facts = (
    f"tree {letter(number)} · {printable(tree.id)[:40]} · {count(tree.size, 'comment')}"
    f" · depth {tree.max_depth} · {count(tree.subtrees, 'subtree')}"
  )
  return Rule(Text(facts, style=f"bold {_style(number)}"), align="left", style="dim")


def _tree_lines(
  tree: TreeView, number: int, width: int, names: Sequence[str]
) -> Iterator[Text]:
  """The lines of a drawn tree, each comment below its parent; `names` of labels."""
  name = letter(number)
  below = {-1: ""}  # what stands in front of a comment's children
  for comment in tree.comments:
    guide = below[comment.parent]
    if comment.index == 0:
      head, body = "", ""
    elif comment.depth <= _INDENTED_DEPTHS:
      head = guide + ("└ " if comment.is_last else "├ ")
      body = guide + ("  " if comment.is_last else "│ ")
    else:
      head, body = guide + "⋮ ", guide + "⋮ "
    deeper = comment.depth < _INDENTED_DEPTHS or comment.index == 0
    below[comment.index] = body if deeper else below[comment.parent]
    body += "│ " if comment.replies and deeper else "  "
    room = max(_MIN_TEXT_WIDTH, width - len(body))
    yield Text.assemble((head, "dim"), _head(comment, name, number, width - len(head)))
    for line in _body(comment, tree, name, room, names):
      yield Text.assemble((body, "dim"), line)
  hidden = tree.size - len(tree.comments)
  if hidden:
    yield Text(
      f"… {count(hidden, 'further comment')} (--max_comments shows more)", "dim italic"
    )


def _head(comment: CommentView, name: str, number: int, width: int) -> Text:
  author = printable(comment.author or "unknown author")
  head = Text.assemble(
    (f"{name}{comment.index}", f"bold {_style(number)}"),
    (f" depth {comment.depth} ", "dim"),
    (author, "bold"),
  )
  if comment.marker:
    head.append(f" {comment.marker}", "dim")
  for note in comment.notes():
    head.append(f" · {printable(note)}", "italic")
  if not comment.parts:
    what = "context only" if comment.context else "empty: neither target nor context"
    head.append(f" · {what}", "italic")
  head.truncate(max(_MIN_TEXT_WIDTH, width), overflow="ellipsis")
  return head


def _body(
  comment: CommentView, tree: TreeView, name: str, width: int, names: Sequence[str]
) -> Iterator[Text]:
  if comment.changes:
    changes = Text("cleaned: ", "dim")
    for operation, text in _around_changes(comment.changes):
      text = printable(text)
      if operation == "delete":
        changes.append(f"-{{{text}}}", "red")
      elif operation == "insert":
        changes.append(f"+{{{text}}}", "green")
      else:
        changes.append(text)
      changes.append(" ")
    yield from _wrap(changes, width, _CHANGE_LINES)
  if comment.labelled:
    yield from _wrap(_labelled(comment.labelled, names), width, _LABEL_LINES)
  for number, part in enumerate(comment.parts, 1):
    if len(comment.parts) > 1:
      yield Text(f"part {number} of {len(comment.parts)}", "dim italic")
    if part.number_predicted and part.predicted:
      reads = Text.assemble(("reads ", "dim"), _tokens(part.tokens, part.breaks))
      yield from _wrap(reads, width, _TOKEN_LINES)
      predicts = Text.assemble(("predicts ", "dim"), _tokens(part.predicted))
      yield from _wrap(predicts, width, _TOKEN_LINES)
    else:
      yield from _wrap(_tokens(part.tokens, part.breaks), width, _TOKEN_LINES)
    yield from _wrap(_sees(comment, part, name), width, _CHANGE_LINES)
  yield from _wrap(_tokens(comment.context), width, _TOKEN_LINES)
  if comment.tokens_cut:
    yield Text(f"{count(comment.tokens_cut, 'token')} cut off", "dim italic")


def _labelled(stretches: Sequence[LabelledText], names: Sequence[str]) -> Text:
  """Text with its labels around what they are on: `claim‹so, premise‹as it is››`."""
  shown = Text("labels: ", "dim")
  styles: list[str] = []
  for stretch in stretches:
    for name, goes_on in stretch.opened:
      styles.append(_LABEL_COLORS[names.index(name) % len(_LABEL_COLORS)])
      shown.append(f"{'…' if goes_on else ''}{printable(name)}‹", f"bold {styles[-1]}")
    # A space at either end is what parts words.
    text = printable(f"|{stretch.text}|")[1:-1]
    shown.append(text, f"underline {styles[-1]}" if styles else "")
    for _ in range(stretch.closed):
      shown.append("›", f"bold {styles.pop()}")
  return shown


def _around_changes(
  changes: Sequence[tuple[str, str]], words: int = 3
) -> Iterator[tuple[str, str]]:
  """The changes with a few words on either side."""
  for place, (operation, text) in enumerate(changes):
    if operation != "equal":
      yield operation, text
      continue
    split = text.split()
    start = split[:words] if place else []
    end = split[-words:] if place < len(changes) - 1 else []
    if len(split) > len(start) + len(end):
      yield "equal", " ".join([*start, "…", *end])
    else:
      yield "equal", text


def _wrap(text: Text, width: int, limit: int) -> Iterator[Text]:
  """The text's first lines; says what is left out."""
  console = Console(width=width, color_system=None)
  text.rstrip()
  if text.plain.startswith(" "):
    text = text[1:]
  lines = list(text.wrap(console, width)) if text else []
  yield from lines[:limit]
  if len(lines) > limit:
    yield Text(f"… {count(len(lines) - limit, 'line')} more", "dim italic")


def _tokens(
  tokens: Sequence[TokenView], breaks: Sequence[tuple[int, str]] = ()
) -> Text:
  begins = dict(breaks)
  shown = Text()
  for place, token in enumerate(tokens):
    if place in begins:
      shown.append(f" {printable(begins[place])}", "bold")
    behind = _token(token)
    shown.append(" " * (place in begins and not behind.plain.startswith(" ")))
    shown.append_text(behind)
  return shown[1:] if shown.plain.startswith(" ") else shown


def _token(token: TokenView) -> Text:
  written, read = map(printable, token.texts())
  shown = _BRACKETS.get(token.kind, "{w}").format(w=written, r=read)
  return Text.assemble(token.space, (shown, _STYLES[token.kind]))


def _sees(comment: CommentView, part: PartView, name: str) -> Text:
  seen: list[str] = []
  for ancestor, slots in part.ancestor_groups():
    hops = f"{ancestor.distance}" if seen else count(ancestor.distance, "hop")
    post = ", the post" if ancestor.comment == 0 else ""
    parts = f", in {slots} parts" if slots > 1 else ""
    nats = comment.counted(ancestor)
    counted = f", {nats} nats" if nats else ""
    seen.append(f"{name}{ancestor.comment} ({hops}{post}{parts}{counted})")
  return Text("sees " + (", ".join(seen) or "nothing: the null vector"), "dim")


def _forest(
  number: int, forest: ForestView, inspection: Inspection, width: int
) -> Iterator[RenderableType]:
  shape = inspection.shape
  yield Rule(
    Text(f"forest {number + 1} of {len(inspection.forests)}", style="bold"),
    align="left",
    style="dim",
  )
  sides: tuple[tuple[Side, int, int, float, int], ...] = (
    (
      "decoder",
      shape.decoder_rows,
      shape.decoder_length,
      forest.fill.decoder,
      shape.target_slots,
    ),
    (
      "encoder",
      shape.encoder_rows,
      shape.encoder_length,
      forest.fill.encoder,
      shape.encoder_slots,
    ),
  )
  for side, rows, length, share, slots in sides:
    blocks = forest.blocks(side)
    what = "targets" if side == "decoder" else "ancestors"
    yield Text.assemble(
      (f"{side} ", "bold"),
      f"{rows} rows of {length} · {len(blocks):,} of {slots:,} slots: {what} ·"
      f" {1 - share:.1%} padding",
    )
    yield from _rows(blocks, rows, length, width)
  yield Text(
    "░ comments of other trees packed along, · padding; behind a row, its real tokens",
    "dim",
  )


def _rows(
  blocks: Sequence[BlockView], rows: int, length: int, width: int
) -> Iterator[Text]:
  """The rows in which the trees shown have a comment, to scale."""
  by_row: dict[int, list[BlockView]] = {}
  for block in sorted(blocks, key=lambda block: (block.row, block.column)):
    by_row.setdefault(block.row, []).append(block)
  ours = [row for row in sorted(by_row) if any(b.tree is not None for b in by_row[row])]
  room = max(_MIN_TEXT_WIDTH, width - 12)
  for row in ours[:_ROWS]:
    used = sum(block.length for block in by_row[row])
    line = Text.assemble((f"{row:>4} ", "dim"))
    at = 0
    for block in by_row[row]:
      start = round(block.column * room / length)
      end = round((block.column + block.length) * room / length)
      line.append("·" * (start - at), "dim")
      line.append(*_bar(block, end - start))
      at = end
    line.append("·" * (room - at), "dim")
    line.append(f" {used / length:>4.0%}", "dim")
    yield line
  hidden, others = len(ours) - len(ours[:_ROWS]), len(by_row) - len(ours)
  notes = [
    f"{count(hidden, 'more row')} of these trees" if hidden else "",
    f"{count(others, 'row')} of other trees" if others else "",
    f"{count(rows - len(by_row), 'empty row')}" if rows > len(by_row) else "",
  ]
  if any(notes):
    yield Text("     … " + ", ".join(filter(None, notes)), "dim italic")


def _bar(block: BlockView, width: int) -> tuple[str, str]:
  """A block so many characters wide, and its style."""
  if block.tree is None:
    return "░" * width, "dim"
  name = f"{letter(block.tree)}{block.comment}"
  style = _style(block.tree)
  if len(name) > width:
    return ("▏" + "─" * width)[:width], style
  return name + "─" * (width - len(name)), style
