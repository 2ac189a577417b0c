"""Reads forests back, one target at a time."""

from typing import NamedTuple

import numpy as np

from commentree.tasks.config.objective import LANGUAGE_FEATURES, PREFIXES
from commentree.tasks.forests import packing
from commentree.tasks.forests.forest_layout import ForestShape

SHAPE = ForestShape(
  encoder_length=32,
  decoder_length=32,
  encoder_rows=6,
  decoder_rows=10,
  encoder_slots=24,
  target_slots=32,
  max_ancestors=4,
  masked_groups=10,
  masked_per_group=32,
  optional_features=(PREFIXES, *LANGUAGE_FEATURES),
)


class Target(NamedTuple):
  """A target: `predicted` has the token predicted at each position, -1 for none."""

  read: tuple[int, ...]
  predicted: tuple[int, ...]
  prefix: int
  positions: tuple[int, ...]
  languages: tuple[int, ...]
  ancestors: tuple[tuple[tuple[int, ...], ...], ...]


def read_targets(forest):
  """The targets of a forest, in the order of their slots."""

  def parts(side, slot, names):
    rows, columns = np.nonzero(forest[f"{side}_segment_ids"] == slot)
    assert len(set(rows)) == 1, "a comment never straddles rows"
    assert (np.diff(columns) == 1).all(), "a comment is contiguous"
    values = [tuple(forest[f"{side}_{n}"][rows, columns].tolist()) for n in names]
    return rows[0], columns, values

  answers = np.full_like(forest["decoder_input_tokens"], -1)
  group, used = np.nonzero(forest["decoder_loss_weights"])
  positions = forest["decoder_masked_positions"][group, used]
  by_group = answers.reshape(len(forest["decoder_loss_weights"]), -1)
  assert (by_group[group, positions] == -1).all()
  by_group[group, positions] = forest["decoder_target_tokens"][group, used]
  targets = []
  for slot in range(1, forest["decoder_segment_ids"].max() + 1):
    names = ("input_tokens", "positions", "languages")
    row, columns, (read, positions, languages) = parts("decoder", slot, names)
    seen = forest["ancestor_slots"][slot - 1]
    ancestors = tuple(tuple(parts("encoder", a, names)[2]) for a in seen if a)
    targets.append(
      Target(
        read,
        tuple(answers[row, columns].tolist()),
        int(forest[PREFIXES][slot - 1]),
        positions,
        languages,
        ancestors,
      )
    )
  return targets


def pack_and_read(subtrees, shape=SHAPE, lookahead=16):
  """The targets of all forests that subtrees are packed into."""
  forests = packing.pack(subtrees, shape, lookahead)
  return [target for forest in forests for target in read_targets(forest)]
