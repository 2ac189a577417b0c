"""Random ragged trees, and forests of them, for testing the model.

Written apart from `commentree.tasks`: slow, plain and one comment at a time, so that
it can be checked by eye against the table of features in `models/batch.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

MASK_ID = 3
FIRST_WORD_ID = 4
# What is kept by group of rows.
MASKED = ("decoder_masked_positions", "decoder_target_tokens", "decoder_loss_weights")
# For programs that run once: compiling is what takes the time.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass
class Comment:
  """One comment and everything a model may know or be asked about it."""

  tokens: list[int]
  depth: int
  whole_path: list[int]  # indices into the forest, nearest first
  ancestors: list[int]  # those of them that may be seen
  distances: list[int]
  is_target: bool
  masked: list[int]  # positions
  tree: int = 1  # number of its tree
  slot: int = 0
  target: int = 0


@dataclasses.dataclass
class Layout:
  encoder_rows: int = 3
  decoder_rows: int = 4
  length: int = 12
  slots: int = 8
  targets: int = 12
  ancestors: int = 4
  masked: int = 6


def random_forest(
  rng: np.random.Generator,
  tree_sizes: tuple[int, ...],
  lengths: tuple[int, ...],
  vocab_size: int,
  max_ancestors: int = 4,
  first_tree: int = 1,
) -> list[Comment]:
  """Draws trees; each comment replies to a random earlier one, the post to none.

  One in eight is not a reply but the next chunk of the comment before it.
  """
  forest: list[Comment] = []
  for tree, size in enumerate(tree_sizes, first_tree):
    root = len(forest)
    for i in range(size):
      path = []
      depth = 0
      if i > 0:
        is_chunk = i > 1 and rng.random() < 1 / 8
        parent = root + (i - 1 if is_chunk else int(rng.integers(max(0, i - 3), i)))
        path = [parent, *forest[parent].whole_path]
        depth = forest[parent].depth + (not is_chunk)
      visible = list(path)
      if len(path) > max_ancestors:
        visible = [*path[: max_ancestors - 1], path[-1]]
      length = int(rng.choice(lengths))
      num_masked = int(rng.integers(1, max(2, length // 2)))
      forest.append(
        Comment(
          tokens=[int(t) for t in rng.integers(FIRST_WORD_ID, vocab_size, length)],
          depth=depth,
          whole_path=path,
          ancestors=visible,
          distances=[depth - forest[v].depth for v in visible],
          # The odd post is a target: one without any ancestors.
          is_target=i > 0 or root == 0,
          masked=sorted(rng.choice(length, num_masked, replace=False).tolist()),
          tree=tree,
        )
      )
  return forest


def masked_tokens(comment: Comment) -> list[int]:
  """Returns what the decoder reads."""
  return [
    MASK_ID if p in comment.masked else token for p, token in enumerate(comment.tokens)
  ]


def empty_example(layout: Layout) -> dict[str, np.ndarray]:
  encoder = (layout.encoder_rows, layout.length)
  decoder = (layout.decoder_rows, layout.length)
  masked = (layout.decoder_rows, layout.masked)
  shapes = {
    "encoder_input_tokens": encoder,
    "encoder_segment_ids": encoder,
    "encoder_positions": encoder,
    "encoder_slot_depths": (layout.slots,),
    "decoder_input_tokens": decoder,
    "decoder_segment_ids": decoder,
    "decoder_positions": decoder,
    "decoder_masked_positions": masked,
    "decoder_target_tokens": masked,
    "decoder_loss_weights": masked,
    "ancestor_slots": (layout.targets, layout.ancestors),
    "ancestor_distances": (layout.targets, layout.ancestors),
    "target_depths": (layout.targets,),
    "target_trees": (layout.targets,),
  }
  example = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
  example["decoder_loss_weights"] = example["decoder_loss_weights"].astype(np.float32)
  example["encoder_slot_depths"] -= 1
  return example


def pack(forest: list[Comment], layout: Layout) -> dict[str, np.ndarray]:
  """Lays a forest out as one example, and notes each comment's slot and target."""
  example = empty_example(layout)
  needed = {a for c in forest if c.is_target for a in c.ancestors}
  used = {"encoder": [0] * layout.encoder_rows, "decoder": [0] * layout.decoder_rows}
  num_masked = [0] * layout.decoder_rows

  def place(side: str, tokens: list[int], segment: int) -> tuple[int, int]:
    row = next(r for r, n in enumerate(used[side]) if n + len(tokens) <= layout.length)
    start = used[side][row]
    columns = slice(start, start + len(tokens))
    example[f"{side}_input_tokens"][row, columns] = tokens
    example[f"{side}_segment_ids"][row, columns] = segment
    example[f"{side}_positions"][row, columns] = np.arange(len(tokens))
    used[side][row] += len(tokens)
    return row, start

  slots = targets = 0
  for i, comment in enumerate(forest):
    comment.slot = comment.target = 0
    if i in needed:
      slots += 1
      comment.slot = slots
      place("encoder", comment.tokens, slots)
      example["encoder_slot_depths"][slots - 1] = comment.depth
    if comment.is_target:
      targets += 1
      comment.target = targets
      row, start = place("decoder", masked_tokens(comment), targets)
      example["target_depths"][targets - 1] = comment.depth
      example["target_trees"][targets - 1] = comment.tree
      for a, (ancestor, distance) in enumerate(
        zip(comment.ancestors, comment.distances)
      ):
        example["ancestor_slots"][targets - 1, a] = forest[ancestor].slot
        example["ancestor_distances"][targets - 1, a] = distance
      for position in comment.masked:
        m = num_masked[row]
        example["decoder_masked_positions"][row, m] = start + position
        example["decoder_target_tokens"][row, m] = comment.tokens[position]
        example["decoder_loss_weights"][row, m] = 1
        num_masked[row] += 1
  return example


def batch_of(*examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def masked_of(batch: dict[str, np.ndarray], example: int, target: int) -> np.ndarray:
  """Returns which masked positions `[G, M]` belong to a target."""
  positions = batch["decoder_masked_positions"][example]
  by_group = batch["decoder_segment_ids"][example].reshape(len(positions), -1)
  segments = np.take_along_axis(by_group, positions, axis=-1)
  return (segments == target) & (batch["decoder_loss_weights"][example] > 0)


def regrouped(batch: dict[str, np.ndarray], groups: int) -> dict[str, np.ndarray]:
  """Returns the batch with masked tokens that are kept by row kept in fewer groups."""
  weights = batch["decoder_loss_weights"]
  examples, rows, _ = weights.shape
  in_group = rows // groups
  used = [np.nonzero(weights[e, r]) for e in range(examples) for r in range(rows)]
  most = max(
    sum(len(columns[0]) for columns in used[first : first + in_group])
    for first in range(0, len(used), in_group)
  )
  found = {}
  for name in MASKED:
    found[name] = np.zeros((examples, groups, most), batch[name].dtype)
    for e in range(examples):
      for group in range(groups):
        values = []
        for row in range(in_group):
          number = group * in_group + row
          offset = row * batch["decoder_segment_ids"].shape[-1]
          own = batch[name][e, number][used[e * rows + number]]
          values.append(own + offset if name == "decoder_masked_positions" else own)
        together = np.concatenate(values)
        found[name][e, group, : len(together)] = together
  return {**batch, **found}


def changes_of(
  logits_of: Callable[[dict[str, np.ndarray]], np.ndarray],
  batch: dict[str, np.ndarray],
  drawn: Sequence[list[Comment]],
) -> Iterator[tuple[list[Comment], int, int, float]]:
  """Yields (forest, i, j, change): of target j's logits, comment i being another."""
  before = logits_of(batch)
  for example, forest in enumerate(drawn):
    for i, comment in enumerate(forest):
      after = logits_of(changed(batch, example, comment))
      for j, other in enumerate(forest):
        if other.is_target and i != j:
          masked = masked_of(batch, example, other.target)
          difference = np.abs(after[example] - before[example])[masked]
          yield forest, i, j, difference.max()


def check_padding_is_unread(
  logits_of: Callable[[dict[str, np.ndarray]], np.ndarray],
  batch: dict[str, np.ndarray],
) -> None:
  """Asserts that the logits in use are the same whatever padding holds."""
  other = {name: feature.copy() for name, feature in batch.items()}
  for side in ("encoder", "decoder"):
    padding = other[f"{side}_segment_ids"] == 0
    other[f"{side}_input_tokens"][padding] = 17
  used = batch["decoder_loss_weights"] > 0
  np.testing.assert_array_equal(logits_of(other)[used], logits_of(batch)[used])


def changed(
  batch: dict[str, np.ndarray], example: int, comment: Comment
) -> dict[str, np.ndarray]:
  """Returns the batch with every token of a comment another word, on both sides."""
  batch = {name: feature.copy() for name, feature in batch.items()}
  for side, segment in (("encoder", comment.slot), ("decoder", comment.target)):
    if segment:
      inside = batch[f"{side}_segment_ids"][example] == segment
      tokens = batch[f"{side}_input_tokens"][example]
      tokens[inside] = np.where(tokens[inside] == MASK_ID, MASK_ID, tokens[inside] ^ 1)
  return batch


def random_batch(seed, sizes_of_examples, trees_of_examples, max_ancestors=4):
  """Draws examples of trees of given sizes and numbers; returns forests and batch."""
  rng = np.random.default_rng(seed)
  layout = Layout(
    encoder_rows=40, decoder_rows=40, slots=80, targets=80, ancestors=max_ancestors
  )
  drawn = []
  for sizes, trees in zip(sizes_of_examples, trees_of_examples):
    forest = []
    for size, tree in zip(sizes, trees):
      root = len(forest)
      for comment in random_forest(
        rng, (size,), (3,), 29, max_ancestors, first_tree=tree
      ):
        comment.ancestors = [root + ancestor for ancestor in comment.ancestors]
        forest.append(comment)
    drawn.append(forest)
  return drawn, batch_of(*(pack(f, layout) for f in drawn))
