"""Reads trees of text for `run.py`, and answers for their comments.

Files of lines of JSON, a tree each:

    {"id", "title", "selftext", "author",
     "comments": [{"id", "parent_id", "author", "body", "created_utc"}, ...]}

Texts are cleaned, marked and cut into tokens as the model was trained, by the files of
commentree in `text_parts`, which take msgspec, etils, sentencepiece, protobuf and
tokenizers.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from commentree.errors import UserError
from commentree.tasks.config import preprocessing
from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.trees.assembly import assemble
from commentree.tasks.trees.comment_tree import Comment, CommentTree, ReadCounts
from commentree.tasks.trees.markers import author_markers
from commentree.tasks.trees.row import Row
from commentree.tasks.vocabulary.vocabularies import Tokenizer

Comments = list[dict[str, Any]]
Answer = dict[str, Any]

MASK = "<mask>"
# Of supplementary private use: cleaning lets them pass, and a mask is found again.
_SENTINEL = "\U000f0000"
_KINDS = {
  "trees": preprocessing.TreeConfig,
  "cleaning": preprocessing.CleaningConfig,
  "markers": preprocessing.MarkersConfig,
  "subtrees": preprocessing.SubtreeConfig,
}
_OF_REPLIES = ("tokens", "lengths", "log_probabilities", "ended")
_MAX_NUMBER, _MAX_SECONDS = 10**76, 2**62  # of an id; of a time
_NO_TEXT = "no text that the model could read"
_NO_MASK = "no mask in it"
_LOST = "lost in cleaning, or behind the tokens that the model reads"


class TextReader:
  """Trees to tokens, and what a function computes to answers.

  Attributes:
    model: `run.Exported`.
    builder: cleans, marks and tokenizes.
  """

  def __init__(self, model: Any, folder: pathlib.Path):
    """Reads the vocabulary.

    Raises:
      ValueError: if the run's texts cannot be read here.
    """
    about = model.spec["text"]
    if "why_not" in about:
      raise ValueError(
        f"texts of this run are not read here: {about['why_not']}; give --comments, or"
        " use commentree infer"
      )
    settings = {
      name: _KINDS[name](
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
      )
      for name, values in about["settings"].items()
    }
    path = folder / model.spec["vocabulary"]["file"]
    tokenizer = Tokenizer(lambda: path, about["vocabulary_markers"])
    self.builder = SubtreeBuilder(tokenizer, PreprocessingConfig(**settings))
    self.model = model

  def answers(self, function: str, path: str) -> Iterator[Answer]:
    """Yields an answer for every comment of a file of trees, in its order.

    Args:
      function: of `model.spec`.
      path: of the file.

    Raises:
      ValueError: if a line holds no tree, one is too large, or the function takes no
        texts.
    """
    kinds: dict[str, Callable[[CommentTree], list[Answer]]] = {
      "embed": self._embed,
      "fill": self._fill,
      "classify": self._classify,
      "regress": self._regress,
      "generate": self._generate,
    }
    if function not in kinds:
      raise ValueError(
        f"{function} takes no texts here, {', '.join(kinds)} do: give --comments, or"
        f" use commentree infer --mode={function}"
      )
    try:
      for tree in self._trees(path):
        found = kinds[function](tree)
        for comment, answer in zip(tree.comments, found, strict=True):
          yield {"tree": tree.id, "comment": comment.id, **answer}
    except UserError as error:
      raise ValueError(str(error)) from error

  def _trees(self, path: str) -> Iterator[CommentTree]:
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
      for number, line in enumerate(lines, start=1):
        if not line.strip():
          continue
        where = f"{path}, line {number}"
        try:
          record = json.loads(line)
        except (ValueError, RecursionError) as error:
          raise ValueError(f"{where}: no JSON: {error}") from None
        if not isinstance(record, dict) or not _tree_id(record):
          raise ValueError(f"{where}: no object with an id")
        rows, config = list(rows_of(record)), self.builder.preprocessing.trees
        tree = assemble(rows, ReadCounts(), config)
        if tree is None:
          raise ValueError(f"{where}: nothing is left of the tree {record['id']}")
        yield tree

  def _comments(self, tree: CommentTree, masked: Sequence[str] = ()) -> Comments:
    """Returns comments as `run.Exported.lay_out` takes them.

    Args:
      tree: the tree.
      masked: texts with masks to take in place of the comments' own.
    """
    texts = masked or self.builder.texts(tree)
    encoded = self.builder.encode_texts(texts, with_masks=bool(masked))
    nodes = self.builder.nodes(tree, encoded)
    ends = np.cumsum(nodes["lengths"])
    return [
      {"tokens": tokens.tolist(), "parent": int(parent)}
      for tokens, parent in zip(np.split(nodes["tokens"], ends[:-1]), nodes["parents"])
    ]

  def _in_parts(
    self, function: str, comments: Comments, wanted: Sequence[tuple[int, int]]
  ) -> Iterator[tuple[dict[str, np.ndarray], dict[Any, Any]]]:
    """Yields outputs and places of as many computations as there is room in.

    Args:
      function: its name.
      comments: of one tree.
      wanted: comments and places in them to predict at.

    Raises:
      ValueError: if there is no room for a single one.
    """
    marked = [dict(comment) for comment in comments]
    for number, place in wanted:
      marked[number].setdefault("predict", []).append(place)
      marked[number]["reply"] = True
      marked[number]["reads"] = comments[number]["tokens"]
    if function == "embed":
      marked = [comments[number] for number, _ in wanted]
    try:
      inputs, places = self.model.lay_out(function, marked)
    except ValueError:
      half = len(wanted) // 2
      if not half:
        raise
      yield from self._in_parts(function, comments, wanted[:half])
      yield from self._in_parts(function, comments, wanted[half:])
      return
    if function == "embed":
      places = {wanted[number][0]: slot for number, slot in places.items()}
    yield self.model(function, **inputs), places

  def _embed(self, tree: CommentTree) -> list[Answer]:
    comments = self._comments(tree)
    alone = [{**comment, "parent": -1} for comment in comments]
    wanted = [(i, 0) for i, comment in enumerate(comments) if comment["tokens"]]
    found: dict[int, Any] = {}
    for outputs, places in self._in_parts("embed", alone, wanted) if wanted else ():
      for number, slot in places.items():
        found[number] = outputs["vectors"][0, slot].tolist()
    return [
      {"vectors": found[i]} if i in found else {"vectors": None, "why": _NO_TEXT}
      for i in range(len(comments))
    ]

  def _classify(self, tree: CommentTree) -> list[Answer]:
    comments = self._comments(tree)
    names = self.model.spec["labels"]
    wanted = [(i, 0) for i, comment in enumerate(comments) if comment["tokens"]]
    nothing = {"label": None, "probabilities": None, "why": _NO_TEXT}
    answers: list[Answer] = [nothing for _ in comments]
    for outputs, places in self._in_parts("classify", comments, wanted):
      for (number, _), (row, column) in places.items():
        shares = outputs["probabilities"][0, row, column].tolist()
        label = names[int(outputs["labels"][0, row, column])]
        answers[number] = {"label": label, "probabilities": dict(zip(names, shares))}
    return answers

  def _regress(self, tree: CommentTree) -> list[Answer]:
    comments = self._comments(tree)
    wanted = [(i, 0) for i, comment in enumerate(comments) if comment["tokens"]]
    answers: list[Answer] = [{"number": None, "why": _NO_TEXT} for _ in comments]
    for outputs, places in self._in_parts("regress", comments, wanted):
      for (number, _), (row, column) in places.items():
        answers[number] = {"number": float(outputs["numbers"][0, row, column])}
    return answers

  def _fill(self, tree: CommentTree) -> list[Answer]:
    marked = [
      replace(comment, text=comment.text.replace(MASK, _SENTINEL), spans=())
      for comment in tree.comments
    ]
    texts = self.builder.texts(replace(tree, comments=marked))
    texts = [text.replace(_SENTINEL, MASK) for text in texts]
    comments = self._comments(tree, texts)
    tokenizer = self.builder.tokenizer
    wanted = [
      (number, place)
      for number, comment in enumerate(comments)
      for place, token in enumerate(comment["tokens"])
      if token == tokenizer.mask_id
    ]
    found: dict[int, list[Any]] = {}
    for outputs, places in self._in_parts("fill", comments, wanted) if wanted else ():
      for (number, _), (row, column) in places.items():
        shares = np.exp(outputs["log_probabilities"][0, row, column]).tolist()
        tokens = outputs["tokens"][0, row, column].tolist()
        found.setdefault(number, []).append(
          [
            {"token": tokenizer.id_to_piece(token), "probability": share}
            for token, share in zip(tokens, shares)
          ]
        )
    return [
      _masks(comment.text, found.get(number, []))
      for number, comment in enumerate(tree.comments)
    ]

  def _generate(self, tree: CommentTree) -> list[Answer]:
    """Replies to comments that have none, by somebody new to the tree."""
    comments = self._comments(tree)
    leaves = [number for number, below in enumerate(tree.children()) if not below]
    replies = [{"tokens": self._first(tree), "parent": leaf} for leaf in leaves]
    wanted = [(len(comments) + i, 0) for i in range(len(leaves))]
    answers: list[Answer] = [{"replies": None} for _ in comments]
    for outputs, places in self._in_parts("generate", [*comments, *replies], wanted):
      for number, target in places.items():
        found = (outputs[name][0, target] for name in _OF_REPLIES)
        answers[leaves[number - len(comments)]] = {
          "replies": [
            self._reply(tokens[:length], float(score), ended=bool(ended))
            for tokens, length, score, ended in zip(*found)
            if np.isfinite(score)
          ]
        }
    return answers

  def _first(self, tree: CommentTree) -> list[int]:
    """Returns the marker that replies begin with, if there is one."""
    names = {comment.author for comment in tree.comments}
    new = next(name for n in range(len(names) + 1) if (name := f"{n}") not in names)
    reply = Comment("", 0, new, "", None)
    grown = replace(tree, comments=[*tree.comments, reply])
    marker = author_markers(grown, self.builder.preprocessing.markers)[-1]
    first = self.builder.tokenizer.piece_to_id(marker) if marker else None
    return [] if first is None else [first]

  def _reply(self, tokens: np.ndarray, score: float, *, ended: bool) -> Answer:
    tokenizer = self.builder.tokenizer
    written = tokens[tokenizer.maskable[tokens]].tolist()
    text = tokenizer.texts.whole(written).strip()
    answer = {"text": text, "log_likelihood": score, "tokens": len(written)}
    return {**answer, "ended": ended}


def rows_of(record: Mapping[str, Any]) -> Iterator[Row]:
  """Yields the post and the comments of a tree, nested ones too, as trees are built."""
  tree_id = _tree_id(record)

  def row(of: Mapping[str, Any], parent: str | None, *, is_post: bool) -> Row:
    name = "selftext" if is_post else "body"
    own = _text(of.get("text") if of.get(name) is None else of[name])
    return Row(
      tree_id=tree_id,
      is_post=is_post,
      id=_identifier(of.get("id")),
      parent_id=parent,
      author=_text(of.get("author")),
      text=_text(of.get("title")) if is_post else own,
      selftext=own if is_post else None,
      created_utc=_seconds(of.get("created_utc")),
    )

  yield row(record, None, is_post=True)
  waiting: list[tuple[Mapping[str, Any], str | None]] = [
    (comment, None) for comment in _below(record)
  ]
  for comment, above in waiting:  # grows as it goes
    parent = comment.get("parent_id")
    place = above if parent in (None, "") else _identifier(parent) or ""
    yield row(comment, place, is_post=False)
    ident = _identifier(comment.get("id")) or place
    waiting += [(each, ident) for each in _below(comment)]


def _tree_id(record: Mapping[str, Any]) -> str:
  return (_identifier(record.get("id")) or "").removeprefix("t3_")


def _identifier(value: Any) -> str | None:
  """Returns an id as text; None for what is none."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value) if abs(value) < _MAX_NUMBER else None
  return (_text(value) or "").strip() or None


def _seconds(value: Any) -> int | None:
  """Returns whole seconds of a number or its digits; None for anything else."""
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    return None
  try:
    number = float(value)
  except (ValueError, OverflowError):
    return None
  return int(number) if 0 <= number < _MAX_SECONDS else None


def _text(value: Any) -> str | None:
  """Returns a text as valid Unicode without NUL; None for anything else."""
  if not isinstance(value, str):
    return None
  whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
  return whole.replace("\0", "")


def _below(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
  for name in ("comments", "replies", "children"):
    if isinstance(record.get(name), list):
      yield from (each for each in record[name] if isinstance(each, dict))


def _masks(text: str, found: Sequence[Any]) -> Answer:
  """Returns the answer for a text: what was found for its masks, in their order."""
  starts = [place.start() for place in re.finditer(re.escape(MASK), text)]
  if not starts:
    return {"masks": None, "why": _NO_MASK}
  if len(found) < len(starts):
    return {"masks": None, "why": f"{len(starts) - len(found)} of its masks {_LOST}"}
  pairs = zip(starts, found, strict=True)
  return {"masks": [{"start": s, "candidates": c} for s, c in pairs]}
