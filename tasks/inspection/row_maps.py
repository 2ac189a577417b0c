"""The packed rows of forests as a part of the page of an inspection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from commentree.tasks.inspection.views import BlockView, Inspection, Side, count, letter

_MAP_HEIGHT = 620


def hue(tree: int) -> int:
  """Hues far from each other, and from those of what is picked and seen."""
  return (165, 300, 100, 340, 200, 130, 275, 10)[tree % 8]


def name_of(tree: int, comment: int) -> str:
  """What the page calls a comment: its tree's letter and its number."""
  return f"{letter(tree)}{comment}"


def row_maps(inspection: Inspection) -> Iterator[str]:
  """The packed rows of all forests."""
  if not inspection.forests:
    return
  yield (
    '<aside class="rows" aria-label="packed rows"><h2>Packed rows</h2><p>Several whole'
    " comments to a row, none cut in two, self-attention only within each; ancestors"
    " are encoded once. "
    + ("The data ended before the rows were full. " if inspection.ran_out else "")
    + "".join(
      f'<span class="swatch" style="background: oklch(var(--light) var(--chroma)'
      f' {hue(number)})"></span>{letter(number)} '
      for number in range(len(inspection.trees))
    )
    + _paler(inspection)
    + '<span class="swatch others"></span>other trees'
    ' <span class="swatch void"></span>padding</p>\n'
  )
  shape = inspection.shape
  drawn = {
    (number, comment.index)
    for number, tree in enumerate(inspection.trees)
    for comment in tree.comments
  }
  height = max(3, min(9, _MAP_HEIGHT // (shape.decoder_rows + shape.encoder_rows) - 1))
  for number, forest in enumerate(inspection.forests):
    later = " later" if number else ""
    yield f'<section class="map{later}" style="--height: {height}px">'
    if len(inspection.forests) > 1:
      yield f"<h2>Forest {number + 1} of {len(inspection.forests)}</h2>"
    sides: tuple[tuple[Side, str, int, int, float], ...] = (
      (
        "decoder",
        "target",
        shape.decoder_rows,
        shape.decoder_length,
        forest.fill.decoder,
      ),
      (
        "encoder",
        "ancestor",
        shape.encoder_rows,
        shape.encoder_length,
        forest.fill.encoder,
      ),
    )
    for side, what, rows, length, share in sides:
      blocks = forest.blocks(side)
      yield (
        f"<h3>{side.title()}: {count(len(blocks), what)}"
        f"<span>{rows} × {length}, {1 - share:.1%} padding</span></h3>"
      )
      yield _strips(number, side, blocks, rows, length, drawn)
    yield "</section>\n"
  yield "</aside>\n"


def _paler(inspection: Inspection) -> str:
  """The legend's entry for comments that are packed and not drawn, if there are any."""
  for number, tree in enumerate(inspection.trees):
    if tree.size > len(tree.comments):
      return (
        f'<span class="swatch paler" style="--hue: {hue(number)}"></span>paler: not'
        " drawn here (--max_comments) "
      )
  return ""


def _strips(
  forest: int,
  side: Side,
  blocks: Sequence[BlockView],
  rows: int,
  length: int,
  drawn: set[tuple[int, int]],
) -> str:
  by_row: list[list[BlockView]] = [[] for _ in range(rows)]
  for block in sorted(blocks, key=lambda block: block.column):
    by_row[block.row].append(block)
  strips = "".join(
    f'<div class="strip">{"".join(_block(forest, side, b, drawn) for b in row)}</div>'
    for row in by_row
  )
  return f'<div aria-hidden="true" style="--length: {length}">{strips}</div>'


def _block(
  forest: int, side: Side, block: BlockView, drawn: set[tuple[int, int]]
) -> str:
  width = f"--n: {block.length}"
  if block.tree is None:
    return f'<i style="{width}"></i>'
  name = name_of(block.tree, block.comment)
  style = f"{width}; --hue: {hue(block.tree)}"
  title = f'title="{name}, {count(block.length, "token")}"'
  if (block.tree, block.comment) not in drawn:
    return f'<i class="dim" style="{style}" {title}></i>'
  slot = f' data-slot="{forest}.{block.slot}"' if side == "encoder" else ""
  return f'<i style="{style}" {title} data-c="{name}" data-side="{side}"{slot}></i>'
