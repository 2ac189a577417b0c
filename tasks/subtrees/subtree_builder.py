"""From a `CommentTree` to tokenised subtrees: the ragged, model-independent features.

A *subtree* is a tree, or a part of one cut out to fit `max_tree_size`. Its *nodes* are
comments, or chunks of comments longer than `max_comment_tokens`; a parent always
precedes its children. Everything here happens once per tree, before masking, and can
be cached offline.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.subtrees import comment_numbers, spans, splitting, translations
from commentree.tasks.subtrees.discourse import PhraseFinder, read_phrases
from commentree.tasks.subtrees.subtree_counts import SubtreeCounts
from commentree.tasks.trees import cleaning, copied_quotations, markers
from commentree.tasks.trees.columns import TREE_INDEX
from commentree.tasks.vocabulary import sequence_ends

if TYPE_CHECKING:
  from commentree.tasks.trees.comment_tree import Comment, CommentTree, Span
  from commentree.tasks.trees.copied_quotations import CleanText
  from commentree.tasks.vocabulary.vocabularies import Tokenizer

# Features of a subtree, all int32 and of rank 1.
NODE_FEATURES = ("lengths", "parents", "depths", "is_target", "node_ids")
SUBTREE_FEATURES = ("tokens", *NODE_FEATURES)
# Those of them that settings ask for come along, int32 [sum(lengths)] as the tokens:
# `LabelsConfig`'s labels, and which occurrence of a discourse marker in its
# comment a token is part of, from 1 on, 0 for none.
LABELS, PHRASES = "token_labels", "phrases"
# And int32 [N] as the nodes, at the node that a comment's text begins in: its class by
# `CommentLabelsConfig`, -1 for none; its number by `CommentNumbersConfig`, transformed,
# as `comment_numbers` has it.
COMMENT_LABELS, COMMENT_NUMBERS = "comment_labels", "comment_numbers"
NODE_ANNOTATIONS = (COMMENT_LABELS, COMMENT_NUMBERS)
# Per token again: its language by `ObjectiveConfig.languages` from 1, 0 for none. Where
# it changes in a node, a translation begins.
LANGUAGES = "languages"
ANNOTATIONS = (LABELS, PHRASES, *NODE_ANNOTATIONS, LANGUAGES)
NO_LABEL = -1
# And the id of the tree that the subtree is of: bytes, of rank 0.
TREE_ID = "tree_id"

# The place of a tree in its source and of a subtree in its tree: whatever order a cache
# has its subtrees in, these two bring them back into that of the source.
PLACE_FEATURES = (TREE_INDEX, "subtree_index")

# Arrays by feature, and the tree's id as bytes.
Subtree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SubtreeBuilder:
  """Turns trees into subtrees; the one place where text becomes token ids."""

  tokenizer: Tokenizer
  preprocessing: PreprocessingConfig = PreprocessingConfig()
  counts: SubtreeCounts = dataclasses.field(default_factory=SubtreeCounts)

  @property
  def annotations(self) -> tuple[str, ...]:
    """Those of `ANNOTATIONS` that the subtrees have."""
    asked = (
      bool(self.preprocessing.labels.names),
      self.preprocessing.discourse.file is not None,
      self.preprocessing.comment_labels.source != "none",
      self.preprocessing.comment_numbers.source != "none",
      bool(self.preprocessing.objective.languages),
    )
    return tuple(name for name, there in zip(ANNOTATIONS, asked) if there)

  @functools.cached_property
  def phrases(self) -> tuple[str, ...]:
    """The discourse markers sought; none if they are switched off."""
    file = self.preprocessing.discourse.file
    return () if file is None else read_phrases(file)

  @functools.cached_property
  def _find_phrases(self) -> PhraseFinder:
    return PhraseFinder(self.phrases)

  @functools.cached_property
  def _ends(self) -> sequence_ends.SequenceEnds | None:
    return sequence_ends.of_vocabulary(self.preprocessing.subtrees, self.tokenizer)

  def texts(
    self, tree: CommentTree, clean: Sequence[CleanText] | None = None
  ) -> list[str]:
    """Cleaned text of each comment, its author's marker token in front.

    Args:
      tree: the tree.
      clean: `self.clean(tree)`, by whoever has it.
    """
    authors = markers.author_markers(tree, self.preprocessing.markers)
    clean = self.clean(tree) if clean is None else clean
    return [
      f"{author} {text}".strip() if text or index else ""
      for index, (author, (text, *_)) in enumerate(zip(authors, clean))
    ]

  def clean(self, tree: CommentTree) -> list[CleanText]:
    """The text of each comment, cleaned."""
    found: collections.Counter[str] = collections.Counter()
    clean = copied_quotations.clean_tree(tree, self.preprocessing.cleaning, found)
    self.counts.words += found[copied_quotations.WORDS]
    self.counts.words_copied += found[copied_quotations.COPIED_WORDS]
    return clean

  def __call__(self, tree: CommentTree) -> Iterator[Subtree]:
    """Yields the subtrees of a tree, in which each comment is a target exactly once."""
    encoded, annotations = self.encode(tree)
    whole = self.nodes(tree, encoded)
    per_token = ["tokens", *annotations]
    per_node = ["lengths", "depths", "node_ids"]
    if self.preprocessing.comment_labels.source != "none":
      whole[COMMENT_LABELS] = self._label_nodes(tree, whole["node_ids"])
      per_node.append(COMMENT_LABELS)
    if self.preprocessing.comment_numbers.source != "none":
      whole[COMMENT_NUMBERS] = self._number_nodes(tree, whole)
      per_node.append(COMMENT_NUMBERS)
    whole |= {name: self._flat(values) for name, values in annotations.items()}
    starts = np.concatenate([[0], np.cumsum(whole["lengths"])])
    tree_id = tree.id.encode("utf-8", "replace")
    self.counts.trees += 1
    self.counts.comments += len(tree.comments)
    splits = splitting.split_nodes(
      whole["parents"],
      whole["is_target"],
      max_tree_size=self.preprocessing.subtrees.max_tree_size,
      max_ancestors=self.preprocessing.subtrees.max_ancestors,
    )
    self.counts.subtrees += len(splits)
    self.counts.nodes += sum(len(split.nodes) for split in splits)
    self.counts.context_copies += splitting.count_copies(splits)
    for split in splits:
      nodes = split.nodes
      tokens = ranges(starts[nodes], whole["lengths"][nodes])
      yield {
        **{name: whole[name][tokens] for name in per_token},
        **{name: whole[name][nodes] for name in per_node},
        "parents": splitting.extract_parents(nodes, whole["parents"]),
        "is_target": split.is_target.astype(np.int32),
        TREE_ID: tree_id,
      }

  def nodes(self, tree: CommentTree, encoded: Sequence[np.ndarray]) -> Subtree:
    """Returns `SUBTREE_FEATURES` of a whole tree: a node a comment, or a node a chunk.

    Args:
      tree: the tree.
      encoded: all tokens of each of its comments.
    """
    parents = np.fromiter((c.parent for c in tree.comments), np.int32, len(encoded))
    depths = np.asarray(tree.depths(), np.int32)
    limit = self.preprocessing.subtrees.max_comment_tokens
    full = np.fromiter(map(len, encoded), np.int32, len(encoded))
    self.counts.tokens += int(full.sum())
    if self.preprocessing.subtrees.long_comments == "truncate":
      self.counts.tokens_cut += int(np.maximum(full - limit, 0).sum())
      chunks = np.ones_like(full)
    else:
      chunks = np.maximum(1, -(-full // limit))
    node_ids = np.repeat(np.arange(len(full), dtype=np.int32), chunks)
    last_node = np.cumsum(chunks, dtype=np.int32) - 1
    first_node = last_node - chunks + 1
    chunk = np.arange(len(node_ids), dtype=np.int32) - first_node[node_ids]
    parent_node = np.where(parents >= 0, last_node[parents], -1)[node_ids]
    lengths = np.minimum(full[node_ids] - chunk * limit, limit).astype(np.int32)
    is_target = (lengths > 0).astype(np.int32)
    if not self.preprocessing.trees.target_post:
      is_target[node_ids == 0] = 0
    return {
      "tokens": self._flat(encoded),
      "lengths": lengths,
      "parents": np.where(
        chunk > 0, np.arange(len(node_ids), dtype=np.int32) - 1, parent_node
      ).astype(np.int32),
      "depths": depths[node_ids],
      "is_target": is_target,
      "node_ids": node_ids,
    }

  def _label_nodes(self, tree: CommentTree, node_ids: np.ndarray) -> np.ndarray:
    """Class of the comment that begins at each node: int32 [N]."""
    for name in self.preprocessing.comment_labels.names:
      self.counts.classes.setdefault(name, 0)
    labels = np.array([self._class_of(tree, comment) for comment in tree.comments])
    is_first = np.diff(node_ids, prepend=-1) > 0
    return np.where(is_first, labels[node_ids], NO_LABEL).astype(np.int32)

  def _number_nodes(self, tree: CommentTree, whole: Subtree) -> np.ndarray:
    """Number of the comment that begins at each node, as `comment_numbers` has it."""
    config = self.preprocessing.comment_numbers
    numbers = np.full(len(whole["node_ids"]), np.nan)
    begins = np.flatnonzero(np.diff(whole["node_ids"], prepend=-1) > 0)
    for node, comment in zip(begins.tolist(), tree.comments, strict=True):
      number = comment_numbers.number_of(comment, config)
      numbers[node] = np.nan if number is None else number
      if whole["is_target"][node]:
        self._count_number(comment, number)
    return comment_numbers.to_bits(numbers)

  def _count_number(self, comment: Comment, number: float | None) -> None:
    """Counts the number of a comment that is to be predicted."""
    counts = self.counts
    counts.with_score += comment.score is not None
    counts.with_label += comment.label is not None
    if number is None:
      counts.numbers_missing += 1
    elif np.isnan(number):
      counts.numbers_odd += 1
    else:
      counts.numbers += 1
      counts.number_sum += number
      counts.number_squares += number**2

  def _class_of(self, tree: CommentTree, comment: Comment) -> int:
    source, names = (
      self.preprocessing.comment_labels.source,
      self.preprocessing.comment_labels.names,
    )
    if source == "deleted_next":
      label: str | None = names[comment.reply_deleted]
    else:
      label = comment.label if source == "label" else tree.subreddit
    if label is None:
      return NO_LABEL
    if label not in names:
      self.counts.other_labels += 1
      return NO_LABEL
    self.counts.classes[label] += 1
    return names.index(label)

  def _flat(self, comments: Sequence[np.ndarray]) -> np.ndarray:
    """One value a token, of the tokens of each comment that there is room for."""
    if self.preprocessing.subtrees.long_comments == "truncate":
      limit = self.preprocessing.subtrees.max_comment_tokens
      comments = [values[:limit] for values in comments]
    return np.concatenate([np.empty(0, np.int32), *comments], dtype=np.int32)

  def encode_texts(
    self, texts: Sequence[str], *, with_masks: bool = False
  ) -> list[np.ndarray]:
    """Token ids of whole comments from their texts, with the ends of a sequence.

    Args:
      texts: cleaned, with markers.
      with_masks: whether `<mask>` in them is the token for masking.
    """
    tokenizer = self.tokenizer
    encode = tokenizer.encode_with_masks if with_masks else tokenizer.encode_batch
    encoded = encode(texts)
    return (
      encoded if self._ends is None else [self._ends.around(ids) for ids in encoded]
    )

  def encode_texts_with_offsets(
    self, texts: Sequence[str]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids as `encode_texts`, and where they stand: an end nowhere, at 0 to 0."""
    encoded = self.tokenizer.encode_batch_with_offsets(texts)
    if self._ends is None:
      return encoded
    return [(self._ends.around(i), self._ends.beside(o, 0, 0)) for i, o in encoded]

  def is_end(self, tokens: np.ndarray) -> np.ndarray:
    """Which tokens of comments are ends of a sequence, bool as `tokens`."""
    ends = () if self._ends is None else (self._ends.begin_id, self._ends.end_id)
    return np.isin(tokens, ends)

  def encode(
    self, tree: CommentTree
  ) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """All tokens of each comment, and annotations of those by feature."""
    encoded, annotations = self._encode_comments(tree)
    if self.preprocessing.objective.languages:
      self._add_languages(tree, encoded, annotations)
    if self._ends is None:
      return encoded, annotations
    for name, values in annotations.items():
      annotations[name] = [self._beside(name, own) for own in values]
    return [self._ends.around(ids) for ids in encoded], annotations

  def _beside(self, name: str, values: np.ndarray) -> np.ndarray:
    """Annotations of a comment's tokens, and of the ends of a sequence around them."""
    assert self._ends is not None
    begin = end = {LABELS: NO_LABEL, PHRASES: 0}.get(name, 0)
    if name == LANGUAGES and len(values):
      begin, end = values[0], values[-1]
    return self._ends.beside(values, begin, end)

  def _add_languages(
    self,
    tree: CommentTree,
    encoded: list[np.ndarray],
    annotations: dict[str, list[np.ndarray]],
  ) -> None:
    """Adds languages of tokens and, for `tlm`, the tokens of translations."""
    names = self.preprocessing.objective.languages
    annotations[LANGUAGES] = [
      np.full(len(ids), translations.language_of(comment.language, names), np.int32)
      for comment, ids in zip(tree.comments, encoded)
    ]
    if self.preprocessing.objective.name != "tlm":
      return
    found = {
      index: translation
      for index, comment in enumerate(tree.comments)
      if (translation := translations.translation_of(comment, names))
    }
    clean = [
      cleaning.clean_text(text, self.preprocessing.cleaning)
      for text, _ in found.values()
    ]
    for (index, (_, language)), ids in zip(
      found.items(), self.tokenizer.encode_batch(clean)
    ):
      kept, more = len(encoded[index]), len(ids)
      if not (kept and more):
        continue
      if self.preprocessing.subtrees.long_comments == "truncate":
        kept, more = translations.share(kept, more, self.preprocessing.subtrees.room)
        cut = len(encoded[index]) + len(ids) - kept - more
        self.counts.tokens += cut
        self.counts.tokens_cut += cut
      encoded[index] = np.append(encoded[index][:kept], ids[:more])
      fill = {LANGUAGES: language, LABELS: NO_LABEL, PHRASES: 0}
      for name, values in annotations.items():
        values[index] = translations.append(values[index], kept, more, fill[name])

  def _encode_comments(
    self, tree: CommentTree
  ) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Tokens of each comment itself, and what is found in its text."""
    clean = self.clean(tree)
    texts = self.texts(tree, clean)
    per_token = [name for name in self.annotations if name in (LABELS, PHRASES)]
    if not per_token:
      return self.tokenizer.encode_batch(texts), {}
    labelled = (
      self._labelled_spans(tree, clean) if self.preprocessing.labels.names else {}
    )
    phrases = {}
    if self.phrases:
      found = ((i, self._find_phrases(text)) for i, (text, *_) in enumerate(clean))
      phrases = {i: places for i, places in found if places}
    # Offsets take longer than tokens: only where there is something to find by them.
    chosen = sorted({*labelled, *phrases})
    with_offsets = self.tokenizer.encode_batch_with_offsets([texts[i] for i in chosen])
    others = [i for i in range(len(texts)) if i not in labelled and i not in phrases]
    without = self.tokenizer.encode_batch([texts[i] for i in others])
    tokens = dict(zip(others, without)) | {
      i: ids for i, (ids, _) in zip(chosen, with_offsets)
    }
    encoded = [tokens[i] for i in range(len(texts))]
    nothing = dict.fromkeys(per_token, 0)
    if self.preprocessing.labels.bare_trees == "left_out" and not labelled:
      nothing[LABELS] = NO_LABEL
    annotations = {
      name: [np.full(len(ids), nothing[name], np.int32) for ids in encoded]
      for name in per_token
    }
    for comment, (_, offsets) in zip(chosen, with_offsets):
      # `texts` has the author's marker in front, and no white space at its ends.
      own = clean[comment].text
      left_out = len(own) - len(own.lstrip())
      offsets = offsets - (len(texts[comment]) - len(own.strip()) - left_out)
      if comment in labelled:
        annotations[LABELS][comment] = spans.label_tokens(
          offsets, labelled[comment], self.preprocessing.labels.names
        )
      if comment in phrases:
        annotations[PHRASES][comment] = self._number_phrases(offsets, phrases[comment])
    return encoded, annotations

  def _labelled_spans(
    self, tree: CommentTree, clean: Sequence[CleanText]
  ) -> dict[int, list[Span]]:
    """Labelled spans of the cleaned texts that have any, by comment."""
    labelled = {}
    for index, comment in enumerate(tree.comments):
      wanted = [
        span for span in comment.spans if span.label in self.preprocessing.labels.names
      ]
      if not wanted:
        continue
      own = clean[index]
      found = spans.through_cleaning(
        comment.text, own.whole, wanted, self.preprocessing.cleaning, own.cuts
      )
      self.counts.spans += len(wanted)
      self.counts.spans_lost += len(wanted) - len(found)
      if found:
        labelled[index] = found
    return labelled

  def _number_phrases(
    self, offsets: np.ndarray, places: Sequence[tuple[int, int]]
  ) -> np.ndarray:
    """Numbers of the phrases that tokens are in, of those that no node cuts."""
    numbers = spans.owners(offsets, places) + 1
    limit = self.preprocessing.subtrees.room
    for cut in range(limit, len(numbers), limit):
      if numbers[cut] and numbers[cut] == numbers[cut - 1]:
        numbers[numbers == numbers[cut]] = 0
    return numbers


def tree_number(subtree: Subtree) -> int:
  """A number from 1 for the tree of a subtree, the same for all of it; 0 if unknown.

  A hash of the tree's id in 31 bits: two of a hundred thousand trees share one.
  """
  if TREE_ID not in subtree:
    return 0
  digest = hashlib.blake2b(subtree[TREE_ID], digest_size=4).digest()
  return max(1, int.from_bytes(digest, "little") >> 1)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Concatenates `arange(start, start + length)` over the pairs, without a loop."""
  total = int(lengths.sum())
  offsets = np.cumsum(lengths) - lengths
  return np.arange(total) + np.repeat(starts - offsets, lengths)


def target_lengths(subtree: Subtree, max_length: int) -> np.ndarray:
  """Tokens of each node as a target in rows of `max_length`, 0 for context: [N]."""
  return np.minimum(subtree["lengths"], max_length) * subtree["is_target"]
