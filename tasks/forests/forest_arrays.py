"""Writing comments into a forest's rows."""

from __future__ import annotations

import numpy as np

from commentree.tasks.subtrees.subtree_builder import ranges

Forest = dict[str, np.ndarray]


def write_segments(
  forest: Forest,
  side: str,
  tokens: np.ndarray,
  starts: np.ndarray,
  lengths: np.ndarray,
  places: np.ndarray,
  row_length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Writes items into one side's rows; returns token indices and cells written to."""
  source = ranges(starts, lengths)
  cells = ranges(places[:, 0] * row_length + places[:, 1], lengths)
  forest[f"{side}_input_tokens"].reshape(-1)[cells] = tokens[source]
  forest[f"{side}_segment_ids"].reshape(-1)[cells] = np.repeat(
    np.arange(1, len(lengths) + 1), lengths
  )
  forest[f"{side}_positions"].reshape(-1)[cells] = ranges(
    np.zeros_like(lengths), lengths
  )
  return source, cells


def write_languages(
  forest: Forest, side: str, languages: np.ndarray, cells: np.ndarray
) -> None:
  """Writes tokens' languages; where it changes in a comment, positions begin anew."""
  forest[f"{side}_languages"].reshape(-1)[cells] = languages
  positions = forest[f"{side}_positions"].reshape(-1)
  in_comment = positions[cells]
  begins = (in_comment == 0) | (np.diff(languages, prepend=0) != 0)
  last_begin = np.maximum.accumulate(np.where(begins, np.arange(len(cells)), 0))
  positions[cells] = in_comment - in_comment[last_begin]


def write_masked(forest: Forest, tokens: np.ndarray, cells: np.ndarray) -> None:
  """Writes targets at masked cells (row * length + column) first into their groups."""
  groups = len(forest["decoder_masked_positions"])
  order = np.argsort(cells)
  group, position = np.divmod(
    cells[order], forest["decoder_input_tokens"].size // groups
  )
  in_group = np.bincount(group, minlength=groups)
  rank = np.arange(len(group)) - np.repeat(np.cumsum(in_group) - in_group, in_group)
  forest["decoder_masked_positions"][group, rank] = position
  forest["decoder_target_tokens"][group, rank] = tokens[order]
  forest["decoder_loss_weights"][group, rank] = 1.0
