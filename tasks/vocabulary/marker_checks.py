"""Whether a vocabulary knows its markers, and kept its tokens when they were added."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from commentree.errors import UserError
from commentree.tasks.trees.markers import MASK
from commentree.tasks.vocabulary.backend import TokenizerBackend
from commentree.tasks.vocabulary.encoded_texts import split, strip_marker_spaces


def check_unchanged(
  before: TokenizerBackend, after: TokenizerBackend, source: str | os.PathLike[str]
) -> None:
  """Raises UserError unless the old tokens, and what they encode, are as before."""
  pieces = [before.id_to_piece(i) for i in range(before.size)]
  same = pieces == [after.id_to_piece(i) for i in range(before.size)]
  if same:
    probes = [before.decode([i]) for i in range(before.size)]
    marked = [after.id_to_piece(int(i)) for i in np.flatnonzero(after.is_marker)]
    probes = [text for text in probes if not any(m in text for m in marked)]
    same = np.array_equal(before.encode(probes).ids, after.encode(probes).ids)
  if not same:
    raise UserError(
      f"{os.fspath(source)}: takes no markers, for they would change the ids of its own"
      " tokens; give the vocabulary as the checkpoint has it"
    )


def check_markers(
  encoder: TokenizerBackend, markers: Sequence[str], where: str | os.PathLike[str]
) -> None:
  """Raises UserError for a marker that is not there, or is cut somewhere."""
  missing = [m for m in markers if m != MASK and encoder.piece_to_id(m) is None]
  if encoder.mask_id is None:
    missing.insert(0, MASK)
  if missing:
    raise UserError(
      f"{os.fspath(where)}: lacks {len(missing)} marker tokens, the first"
      f" {missing[0]}; add them with `commentree vocab --from={os.fspath(where)}"
      " --output=PATH`"
    )
  told = [m for m in markers if m != MASK]
  probes = [f"a{marker}a {marker} a" for marker in told]
  for marker, ids in zip(
    told, split(strip_marker_spaces(encoder, encoder.encode(probes)))
  ):
    token = encoder.piece_to_id(marker)
    places = np.flatnonzero(ids == token)
    if len(places) != 2 or not encoder.is_marker[token]:
      raise UserError(
        f"{os.fspath(where)}: would cut the marker {marker} instead of taking it as"
        " one token; add it with `commentree vocab"
        f" --from={os.fspath(where)} --output=PATH`"
      )
