"""A trained model from Python, in a few lines.

    import commentree

    model = commentree.load("runs/mine")
    for answer in model.fill({"id": "t1", "title": "<mask> or dogs?", "comments": []}):
      print(answer["comment"], answer["filled"])

Answers are those of `commentree infer`, by the same code.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from commentree.errors import UserError
from commentree.launch.inference import run_context
from commentree.launch.inference.modes import mode_table
from commentree.launch.inference.run_context import RunContext
from commentree.launch.settings import library_noise, run_folder
from commentree.settings import check_choice
from commentree.tasks.readers import tree_jsonl
from commentree.tasks.trees.assembly import assemble
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

if TYPE_CHECKING:
  from commentree.launch.inference.devices import Program
  from commentree.launch.inference.modes.base import Mode
  from commentree.models.model import CommentTreeModel

Tree = CommentTree | Mapping[str, Any] | str
"""A tree, a dictionary as a line of tree JSONL holds it, or the text of a lone post."""
Ancestors = Literal["true", "parent_only", "none"]
Answers = list[Any]
"""Of a tree: a dictionary for each comment. Of several: a list of those for each."""

_LONGEST_SHOWN = 60


class LoadedModel:
  """A trained model that answers for comments.

  Every method takes a tree or several, and `ancestors`: which of the comments above it
  a comment sees, `'true'` (all), `'parent_only'` or `'none'`. A text is a tree of one
  post. Answers come in the order of the tree's comments, posts first, and name them by
  `tree` and `comment`; what became of comments of dictionaries that are odd is in
  `read_counts`.

  Attributes:
    run: what is known of the run.
    step: of the checkpoint.
    path: of the checkpoint.
    read_counts: what became of what was read from dictionaries.
  """

  def __init__(self, run: RunContext, step: int | Literal["best"] | None):
    """Reads the parameters onto this process's devices; see `load`."""
    from commentree.launch.inference.engine import Engine

    self.run = run
    self.read_counts = ReadCounts()
    self._engine = Engine(run, step)
    self._modes: dict[Any, Mode] = {}
    self._programs: dict[Any, Program] = {}
    self.step, self.path = self._engine.step, str(self._engine.path)

  @property
  def model(self) -> CommentTreeModel:
    """The network behind T5X's model interface; `model.config` has its settings."""
    return self._engine.devices.model

  @property
  def params(self) -> Any:
    """The parameters, as nested dictionaries of arrays by T5X's names."""
    return self._engine.devices.params

  def __repr__(self) -> str:
    objectives = " and ".join(self.run.objectives)
    modes = ", ".join(mode_table.able(self.run.config))
    return f"<commentree model {self.path} ({objectives}): {modes}>"

  def fill(
    self,
    of: Tree | Sequence[Tree],
    *,
    top_k: int = 5,
    mask: str = "<mask>",
    ancestors: str = "true",
  ) -> Answers:
    """Returns what may stand in the masks of comments.

    Args:
      of: a tree, or several.
      top_k: tokens for each mask.
      mask: what stands for a masked token in the texts.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment `masks`, with `start` and `candidates` of each, and the text
      `filled`.
    """
    return self._answers("fill", of, ancestors, {"top_k": top_k, "mask": mask})

  def embed(
    self,
    of: Tree | Sequence[Tree],
    *,
    contextual: bool = False,
    ancestors: str = "true",
  ) -> Answers:
    """Returns vectors of comments.

    Args:
      of: a tree, or several.
      contextual: whether to give vectors in threads too.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment `vectors` `[J, D]` and, if asked for, `in_thread` `[D]`.
    """
    return self._answers("embed", of, ancestors, {"contextual": contextual})

  def encode(
    self, sentences: str | Sequence[str], *, normalize_embeddings: bool = False
  ) -> np.ndarray:
    """Returns vectors of texts, as `encode` of sentence-transformers does.

    Each text is read as a post without a thread; its vector is the mean of those that
    `embed` gives.

    Args:
      sentences: texts, or one.
      normalize_embeddings: whether to scale vectors to length 1.

    Returns:
      float32 `[N, D]`, or `[D]` of one text; NaN for a text that nothing is left of.

    Raises:
      UserError: if something given is no text.
    """
    texts = _texts(sentences)
    trees: dict[int, CommentTree] = {}
    for number, text in enumerate(texts):
      if not isinstance(text, str):
        raise _no_text(text)
      with contextlib.suppress(UserError):
        trees[number] = self._tree(text, "text")
    answers = self.embed(list(trees.values()))
    of_text = dict(zip(trees, (answer["vectors"] for (answer,) in answers)))
    width = self.run.config.model.emb_dim
    found = np.full((len(texts), width), np.nan, np.float32)
    for number, vectors in of_text.items():
      if vectors is not None:
        found[number] = np.mean(vectors, axis=0)
    if normalize_embeddings:
      found /= np.linalg.norm(found, axis=-1, keepdims=True)
    return found[0] if isinstance(sentences, str) else found

  def rank(
    self,
    of: Tree | Sequence[Tree],
    candidates: Tree | Sequence[Tree] | None = None,
    *,
    top_k: int = 10,
    ancestors: str = "true",
  ) -> Answers:
    """Returns which of many comments answer a comment.

    Args:
      of: a tree, or several.
      candidates: trees whose comments may be replies, or texts, or one; those of `of`
        if None.
      top_k: replies for each comment.
      ancestors: which of the comments above it a reply sees.

    Returns:
      Of each comment `replies`, the best first, with `tree`, `comment`, `score` and
      `rank` of each; `true_replies`, those that it has among the candidates; and how
      many `candidates` of other trees there are. Texts that are candidates have
      the ids "text 0", "text 1" and so on.
    """
    options = {"top_k": top_k}
    mode_table.check("rank", self.run.config, options)
    check_choice("rank", "ancestors", ancestors, Ancestors)
    # No candidate is of the tree of a text: they have ids that tell them apart.
    read, one = self._read(of, numbered=candidates is None)
    others = read if candidates is None else self._read(candidates, numbered=True)[0]
    made = mode_table.make(
      "rank", self.run, ancestors, {**options, "candidates": lambda: others}
    )
    self._engine.prepare(made, self._program(made))
    return self._named(made, read, one=one)

  def score(
    self,
    of: Tree | Sequence[Tree],
    *,
    attribution: bool = False,
    masks_apart: int | None = None,
    ancestors: str = "true",
  ) -> Answers:
    """Returns how likely comments are.

    Args:
      of: a tree, or several.
      attribution: whether to tell how much each ancestor counts.
      masks_apart: tokens from one mask to the next, to be quicker; None for exact
        scores, with each token masked alone.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment `log_likelihood`, `without_ancestors` and their `difference`, in
      nats, and the `tokens` they are of. If asked for, its `ancestors`, nearest first:
      `comment`, `distance` in hops, and `nats_per_token`, which its tokens lose on
      average where that ancestor is hidden.
    """
    options = {"attribution": attribution, "masks_apart": masks_apart}
    return self._answers("score", of, ancestors, options)

  def generate(
    self, of: Tree | Sequence[Tree], *, ancestors: str = "true", **options: Any
  ) -> Answers:
    """Returns replies to comments.

    Args:
      of: a tree, or several.
      ancestors: which of the comments above it a reply sees.
      **options: those of `commentree infer --mode=generate`: `reply_to`, `author`,
        `seed`, `max_tokens`, `num_replies`, `temperature`, `top_k`, `top_p`, …

    Returns:
      Of each comment `replies`, with `text`, `log_likelihood`, `tokens` and `ended` of
      each; None for comments that none was asked for to.
    """
    return self._answers("generate", of, ancestors, options)

  def tag(self, of: Tree | Sequence[Tree], *, ancestors: str = "true") -> Answers:
    """Returns labelled parts of comments.

    Args:
      of: a tree, or several.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment `spans`, with `start`, `end`, `label`, `score` and `text` of each.
    """
    return self._answers("tag", of, ancestors, {})

  def classify(self, of: Tree | Sequence[Tree], *, ancestors: str = "true") -> Answers:
    """Returns labels of comments.

    Args:
      of: a tree, or several.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment its `label`, and the `probabilities` of all labels.
    """
    return self._answers("classify", of, ancestors, {})

  def regress(self, of: Tree | Sequence[Tree], *, ancestors: str = "true") -> Answers:
    """Returns numbers of comments.

    Args:
      of: a tree, or several.
      ancestors: which of the comments above it a comment sees.

    Returns:
      Of each comment its `number`, in the scale of the data; of a run that ranks, one
      that orders the replies to the same comment.
    """
    return self._answers("regress", of, ancestors, {})

  def _answers(
    self,
    mode: str,
    of: Tree | Sequence[Tree],
    ancestors: str,
    options: Mapping[str, Any],
  ) -> Answers:
    mode_table.check(mode, self.run.config, options)
    check_choice(mode, "ancestors", ancestors, Ancestors)
    read, one = self._read(of)
    key = (mode, ancestors, *sorted(options.items()))
    if key not in self._modes:
      self._modes[key] = mode_table.make(mode, self.run, ancestors, options)
    return self._named(self._modes[key], read, one=one)

  def _read(
    self, of: Tree | Sequence[Tree], *, numbered: bool = False
  ) -> tuple[list[CommentTree], bool]:
    """Returns the trees given, texts `numbered` or not, and whether it is just one."""
    one = isinstance(of, (CommentTree, Mapping, str))
    if not one and (isinstance(of, bytes) or not isinstance(of, Iterable)):
      raise _no_tree(of)
    several: Iterable[Tree] = [cast(Tree, of)] if one else cast(Iterable[Tree], of)
    names = (f"text {number}" if numbered else "text" for number in itertools.count())
    return [self._tree(tree, name) for tree, name in zip(several, names)], one

  def _program(self, made: Mode) -> Program:
    if made.program_key not in self._programs:
      self._programs[made.program_key] = self._engine.program(made)
    return self._programs[made.program_key]

  def _named(self, made: Mode, read: Sequence[CommentTree], *, one: bool) -> Answers:
    program = self._program(made)
    ((answers, _),) = self._engine.answers(made, program, [(read, None)])
    named = [
      [
        {"tree": tree.id, "comment": comment.id, **answer}
        for comment, answer in zip(tree.comments, of_tree, strict=True)
      ]
      for tree, of_tree in zip(read, answers)
    ]
    return named[0] if one else named

  def _tree(self, tree: Tree, name: str) -> CommentTree:
    if isinstance(tree, CommentTree):
      return tree
    if isinstance(tree, str):
      record: Mapping[str, Any] = {"id": name, "selftext": tree}
    elif isinstance(tree, Mapping):
      record = tree
    else:
      raise _no_tree(tree)
    # A post without a list of comments is one without replies.
    if record.get("comments") is None:
      record = {**record, "comments": []}
    rows = list(tree_jsonl.record_rows(record, self.read_counts))
    found = (
      assemble(rows, self.read_counts, self.run.builder.preprocessing.trees)
      if rows
      else None
    )
    if found is None:
      raise UserError(
        f"tree {record.get('id')!r}: no comment is left of it; give 'id', 'title' or"
        " 'selftext', and a list of 'comments' as in docs/data.md"
      )
    return found


def _texts(given: str | Iterable[str]) -> list[str]:
  """Returns the texts given, or the one."""
  if isinstance(given, str):
    return [given]
  # Bytes would be numbers, and a dictionary its keys.
  if isinstance(given, (bytes, Mapping)):
    raise _no_text(given)
  try:
    return list(given)
  except TypeError as error:
    raise _no_text(given) from error


def _no_text(given: object) -> UserError:
  shown = repr(given)[:_LONGEST_SHOWN]
  return UserError(f"{shown} is no text: encode takes texts, embed takes trees")


def _no_tree(given: object) -> UserError:
  return UserError(
    f"{repr(given)[:_LONGEST_SHOWN]} is no tree: give a text, a dictionary with 'id',"
    " 'title' and 'comments' as in docs/data.md, or a list of those"
  )


def load(
  model_dir: str | os.PathLike[str],
  step: int | Literal["best"] | None = None,
  *,
  trust_config: bool = False,
  **settings: Any,
) -> LoadedModel:
  """Loads a trained model.

  Args:
    model_dir: folder of a run of `commentree train`, local, gs:// or s3://.
    step: the checkpoint, or 'best'; the newest if None.
    trust_config: whether the folder's config.gin may import modules, which runs their
      code, and say where caches lie; see docs/trust.md.
    **settings: of the run, to be changed, as `VOCABULARY="other.model"`.

  Raises:
    UserError: if there is no such run or checkpoint, or its settings are refused.
  """
  if not isinstance(model_dir, (str, os.PathLike)):
    raise UserError(f"load({model_dir!r}): give the folder of a run, its MODEL_DIR")
  if "jax" not in sys.modules:
    library_noise.disable_libtpu_without_tpu()
  overrides = [
    f"{name} = {(os.fspath(v) if isinstance(v, os.PathLike) else v)!r}"
    for name, v in settings.items()
  ]
  run = run_folder.load(os.fspath(model_dir), overrides, trust_config=trust_config)
  return LoadedModel(run_context.of_run(run), step)
