"""What a trained model says of a corpus of ConvoKit, on the corpus.

    import commentree
    from commentree.launch.convokit import CommentTreeTransformer

    model = commentree.load("runs/mine")
    corpus = CommentTreeTransformer(model).transform(corpus)
    corpus.get_utterance("u2").meta["commentree_loss"]

Answers are those of `commentree.load`'s model; conversations become trees as files of a
corpus do, by `tasks/readers/convokit.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from commentree.errors import UserError
from commentree.launch.inference.model import LoadedModel
from commentree.launch.inference.modes import mode_table
from commentree.tasks.config.preprocessing import TreeConfig
from commentree.tasks.objectives import label_objectives
from commentree.tasks.readers import convokit as reader
from commentree.tasks.trees.assembly import assemble
from commentree.tasks.trees.comment_tree import CommentTree, ReadCounts

try:
  import convokit
except ModuleNotFoundError as error:
  raise UserError(
    f"corpora of ConvoKit need {error.name}, which is not installed: pip install"
    " 'commentree[convokit]', or see docs/convokit.md for less"
  ) from error

NOT_IN_TREE = "not in its conversation's tree: deleted, empty, or without a place"

_TREES_AT_ONCE = 256
# What `rank` and `generate` compute has to be asked for.
_BY_DEFAULT = ("embed", "score", "tag", "classify", "regress")
_NOT_OF_A_CORPUS = ("rank",)
_VECTORS = ("vectors", "in_thread")


class ConversationTree(NamedTuple):
  """A conversation as a tree.

  Attributes:
    tree: of the comments that are left.
    utterances: the id of each comment's utterance; None of a post that is missing.
  """

  tree: CommentTree
  utterances: list[str | None]


class CommentTreeTransformer(convokit.Transformer):
  """Adds a model's answers for each comment to the utterances of a corpus.

  Attributes:
    read_counts: what became of the utterances of the last corpus.
  """

  def __init__(
    self,
    model: LoadedModel,
    modes: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    name: str = "commentree",
    ancestors: str = "true",
  ):
    """Sets up.

    Args:
      model: of `commentree.load`.
      modes: what to ask the model, as its methods are called: `embed`, `score`, `tag`,
        `classify`, `regress`, `fill`, `generate`; or each with options of its own, as
        `{"embed": {"contextual": True}}`. If None, what the model can do of the first
        five.
      name: of the matrix of vectors; `name_` begins the keys of `meta`.
      ancestors: which of the comments above it a comment sees: `'true'` (all),
        `'parent_only'` or `'none'`.

    Raises:
      UserError: if the model cannot do what is asked.
    """
    able = mode_table.able(_checked(model).run.config)
    if modes is None:
      modes = [mode for mode in _BY_DEFAULT if mode in able]
    elif isinstance(modes, str):
      modes = [modes]
    self._modes = dict(modes) if isinstance(modes, Mapping) else {m: {} for m in modes}
    for mode, options in self._modes.items():
      if mode not in mode_table.MODES or mode in _NOT_OF_A_CORPUS:
        possible = ", ".join(each for each in able if each not in _NOT_OF_A_CORPUS)
        raise UserError(f"modes: {mode!r} is none of {possible}")
      mode_table.check(mode, model.run.config, options)
    self._model, self._name, self._ancestors = model, name, ancestors
    self.read_counts = ReadCounts()

  def transform(self, corpus: convokit.Corpus) -> convokit.Corpus:
    """Adds answers to all utterances, in place.

    Vectors become a matrix of the corpus called `name`, float32 `[utterances, D]`, with
    a row for each utterance that has a text: the mean of those that the model pools it
    to; with `contextual` also `name_in_thread`. All else is in `meta`: `name_` and what
    `commentree infer` calls it, None where there is no answer, and then `name_why`.
    `score` adds `name_loss`, nats a token, given the comments above.

    Args:
      corpus: what to add answers to; a key that is there is written over.

    Returns:
      The same corpus.

    Raises:
      UserError: if it is no corpus.
    """
    if not isinstance(corpus, convokit.Corpus):
      raise UserError(f"{corpus!r} is no convokit.Corpus")
    self.read_counts = ReadCounts()
    answers: dict[str, dict[str, Any]] = {}
    conversations = corpus.iter_conversations()
    while some := list(itertools.islice(conversations, _TREES_AT_ONCE)):
      trees = [self._tree(each) for each in some]
      self._answer([found for found in trees if found is not None], answers)
    keys = dict.fromkeys(key for found in answers.values() for key in found)
    for utterance in corpus.iter_utterances():
      found = answers.get(utterance.id, {"why": NOT_IN_TREE})
      for key in {**keys, **found}:
        if key not in _VECTORS:
          utterance.add_meta(f"{self._name}_{key}", found.get(key))
    for key in _VECTORS:
      self._add_vectors(corpus, key, answers)
    return corpus

  def _tree(self, conversation: convokit.Conversation) -> ConversationTree | None:
    config = self._model.run.builder.preprocessing.trees
    return tree_of(
      conversation.iter_utterances(), conversation.meta, config, self.read_counts
    )

  def _answer(
    self, trees: Sequence[ConversationTree], answers: dict[str, dict[str, Any]]
  ) -> None:
    """Adds what each mode says of each utterance, by its id."""
    for mode, options in self._modes.items():
      ask = getattr(self._model, mode)
      found = ask([each.tree for each in trees], ancestors=self._ancestors, **options)
      for (_, utterances), of_tree in zip(trees, found, strict=True):
        for utterance, answer in zip(utterances, of_tree, strict=True):
          if utterance is not None:
            answers.setdefault(utterance, {}).update(_named(answer))

  def _add_vectors(
    self, corpus: convokit.Corpus, key: str, answers: Mapping[str, Mapping[str, Any]]
  ) -> None:
    name = self._name if key == "vectors" else f"{self._name}_{key}"
    found = {
      ident: answer[key]
      for ident, answer in answers.items()
      if answer.get(key) is not None
    }
    if not found:
      return
    corpus.set_vector_matrix(name, np.stack([*found.values()]), ids=[*found])
    for ident in found:
      corpus.get_utterance(ident).add_vector(name)


class CommentTreeForecaster:
  """A model that classifies comments, as what `convokit.Forecaster` calls a model.

  A conversation's forecast at an utterance is the probability of a label, as a run of
  `runs/finetune_classify.gin` gives it to that utterance in its thread. It has what
  `convokit.forecaster.ForecasterModel` has, and does not inherit from it: importing
  that takes a GPU.

  Attributes:
    labeler: says whether what is forecast happened; `convokit.Forecaster` sets it.
    decision_policy: of `convokit.decisionpolicy`; decides by the probability.
    forecast_prob_attribute_name: as `convokit.Forecaster` sets it.
  """

  def __init__(self, model: LoadedModel, label: str, *, decision_policy: Any = None):
    """Sets up.

    Args:
      model: of `commentree.load`, of the objective `classify`.
      label: whose probability is the forecast.
      decision_policy: by default that above a threshold, at first 0.5.

    Raises:
      UserError: if the model has no such labels.
    """
    mode_table.check("classify", _checked(model).run.config, {})
    names = label_objectives.label_names(
      model.run.config.data.preprocessing, "classify"
    )
    if label not in names:
      raise UserError(f"label: {label!r} is none of the run's {', '.join(names)}")
    if decision_policy is None:
      from convokit.decisionpolicy import ThresholdDecisionPolicy

      # What another model's forecasts left in `meta` is none of ours.
      decision_policy = ThresholdDecisionPolicy(reuse_cached_forecast_probs=False)
    self._model, self._label = model, label
    self.decision_policy = decision_policy
    self.labeler: Callable[[convokit.Conversation], int] | None = None
    self.forecast_prob_attribute_name = "forecast_prob"

  def fit(self, contexts: Iterable[Any], val_contexts: Iterable[Any] | None = None):
    """Fits the threshold alone, to `val_contexts`; the model stays as it is."""
    return self.fit_decision_policy(contexts, val_contexts)

  def fit_decision_policy(
    self, contexts: Iterable[Any], val_contexts: Iterable[Any] | None = None
  ) -> Any:
    """Fits what decides by the probability; returns what the policy says of it."""
    policy = self.decision_policy
    policy.labeler = self.labeler
    policy.forecast_prob_attribute_name = self.forecast_prob_attribute_name
    return policy.fit(contexts=contexts, val_contexts=val_contexts, score_fn=self.score)

  def fit_belief_estimator(
    self, contexts: Iterable[Any], val_contexts: Iterable[Any] | None = None
  ) -> None:
    """Refuses: `commentree train` trains the model.

    Raises:
      UserError: always.
    """
    del contexts, val_contexts
    raise UserError(
      "a CommentTreeForecaster does not train its model: fine-tune one by commentree"
      " train --gin_file=runs/finetune_classify.gin, and fit the threshold by fit"
    )

  def score(self, context: Any) -> float:
    """Returns the probability at a context's last utterance; NaN if it has no text."""
    (found,) = self._probabilities([context])
    return float("nan") if found is None else found

  def transform(
    self,
    contexts: Iterable[Any],
    forecast_attribute_name: str,
    forecast_prob_attribute_name: str,
  ) -> Any:
    """Forecasts.

    Args:
      contexts: each with `context`, the utterances so far, and `current_utterance`, the
        last of them.
      forecast_attribute_name: column of what was decided, 0 or 1.
      forecast_prob_attribute_name: column of the probabilities.

    Returns:
      A table of pandas, its rows by the ids of utterances; one without text has none.
    """
    import pandas as pd

    columns = (forecast_prob_attribute_name, forecast_attribute_name)
    rows: dict[str, dict[str, Any]] = {}
    waiting = iter(contexts)
    while some := list(itertools.islice(waiting, _TREES_AT_ONCE)):
      for context, found in zip(some, self._probabilities(some), strict=True):
        if found is not None:
          # Bound now: a policy may keep it.
          decided = self.decision_policy.decide(context, lambda _, found=found: found)
          rows[context.current_utterance.id] = dict(zip(columns, decided))
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*columns])

  def _probabilities(self, contexts: Sequence[Any]) -> list[float | None]:
    """Returns the probability of the label at each context's last utterance."""
    config = self._model.run.builder.preprocessing.trees
    threads = [
      tree_of(_thread(context), _meta_of(context), config, ReadCounts())
      for context in contexts
    ]
    trees = [thread.tree for thread in threads if thread is not None]
    answers = iter(self._model.classify(trees))
    return [
      None
      if thread is None
      else self._of(context.current_utterance.id, thread, next(answers))
      for context, thread in zip(contexts, threads)
    ]

  def _of(
    self, ident: str, thread: ConversationTree, answers: Sequence[Mapping[str, Any]]
  ) -> float | None:
    """Returns the probability for an utterance; None if there is no answer for it."""
    if ident not in thread.utterances:
      return None
    probabilities = answers[thread.utterances.index(ident)]["probabilities"]
    return None if probabilities is None else probabilities[self._label]


def _checked(model: LoadedModel) -> LoadedModel:
  """Returns a model if it is one."""
  if not isinstance(model, LoadedModel):
    raise UserError(f"{model!r} is no model: give what commentree.load returns")
  return model


def _named(answer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields what is told of an utterance, by its key."""
  for key, value in answer.items():
    if key == "vectors" and value is not None:
      yield key, np.mean(value, axis=0)
    elif key not in ("tree", "comment"):
      yield key, value
    if key == "log_likelihood":
      tokens = answer["tokens"]
      yield "loss", -value / tokens if tokens else None


def tree_of(
  utterances: Iterable[convokit.Utterance],
  meta: Mapping[str, Any],
  config: TreeConfig,
  read_counts: ReadCounts,
) -> ConversationTree | None:
  """Returns a conversation as the tree that its lines in a file become.

  Args:
    utterances: all of it.
    meta: of the conversation; has its title, if it has one.
    config: what to do with what is odd.
    read_counts: counts what became of every utterance.

  Returns:
    The tree; None if there is nothing left of it.
  """
  read = [
    reader.Utterance(
      id=each.id,
      conversation_id=each.conversation_id,
      reply_to=each.reply_to,
      speaker=each.speaker.id,
      text=each.text,
      timestamp=each.timestamp,
      meta=each.meta,
    )
    for each in utterances
  ]
  rows = list(reader.conversation_rows(read, meta, config, read_counts))
  tree = assemble(rows, read_counts, config) if rows else None
  if tree is None:
    return None
  # Of equal ids the first counts, as it does in the tree.
  given = {row.id: each.id for row, each in [*zip(rows, read, strict=True)][::-1]}
  return ConversationTree(tree, [given.get(comment.id) for comment in tree.comments])


def _thread(context: Any) -> list[convokit.Utterance]:
  """Returns the last utterance of a context and those above it, the first on top."""
  known = {each.id: each for each in context.context}
  thread: dict[str, convokit.Utterance] = {}
  each = context.current_utterance
  while each is not None and each.id not in thread:
    thread[each.id] = each
    each = known.get(each.reply_to)
  return [*thread.values()][::-1]


def _meta_of(context: Any) -> Mapping[str, Any]:
  """Returns what is known of a context's conversation."""
  return context.current_utterance.get_conversation().meta
