"""Registers comment-tree tasks with SeqIO.

    registry.add_files_task("my_forum", files="dumps/*.jsonl.gz",
                            vocabulary="my_forum.model")

makes a task that SeqIO's tools, our trainer and T5X's know by that name, and

    registry.add_mixture("both", {"my_forum": 0.7, "other_forum": 0.3})

a mixture of such tasks.

This is the one of two ways to a forest that SeqIO and T5X take: a stream. The trainer
reads the same subtrees by index (`tasks/data.py`, `forests/forest_streams.py`); both
call the same functions, see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import seqio

from commentree.errors import UserError, suggestion
from commentree.tasks import settings_tasks
from commentree.tasks.config import mixture_config
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import HELD_OUT_SHARE, PreprocessingConfig
from commentree.tasks.objectives import label_objectives, objectives
from commentree.tasks.seqio_tasks import preprocessors
from commentree.tasks.seqio_tasks.seqio_source import SeqioTreeSource
from commentree.tasks.sources.tree_sources import TreeSource
from commentree.tasks.tree_task import MixedTask, TreeTask
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary

GENERATED, FILES = mixture_config.GENERATED, mixture_config.FILES


class CommentTreeTask(seqio.Task, TreeTask):
  """A SeqIO task over comment trees, its parts at hand for trainer and inspection.

  Attributes:
    features: what is added to subtrees when the task is read through SeqIO.
  """

  def __init__(
    self,
    name: str,
    tree_source: TreeSource,
    tokenizer: vocabularies.Tokenizer,
    preprocessing: PreprocessingConfig,
    features: Sequence[str] = (),
  ):
    """Builds the pipeline; nothing is read or trained yet.

    Args:
      name: what SeqIO is to know it by.
      tree_source: where the trees come from.
      tokenizer: text to token ids.
      preprocessing: the settings.
      features: features of `objectives.ALL_FEATURES` that SeqIO's examples are to have
        beside those of the objective, as other tasks of a mixture have them.
    """
    TreeTask.__init__(self, name, tree_source, tokenizer, preprocessing)
    wanted = {*objectives.features(preprocessing.objective), *features}
    annotations = self.subtree_builder().annotations
    self.features = tuple(
      name
      for name in objectives.ALL_FEATURES
      if name in wanted and name not in annotations
    )
    seqio.Task.__init__(
      self,
      name,
      source=SeqioTreeSource(tree_source),
      preprocessors=[
        self._to_subtrees,
        seqio.CacheDatasetPlaceholder(),
        self._apply_objective,
      ],
      output_features=preprocessors.output_features(
        TokenizerVocabulary(tokenizer),
        self.features,
        annotations,
        predicts_tokens=objectives.predicts_tokens(preprocessing.objective),
      ),
    )

  def _to_subtrees(self, ds):
    return preprocessors.trees_to_subtrees(ds, self.subtree_builder())

  def _apply_objective(self, ds, sequence_length):
    limit = self.preprocessing.subtrees.max_comment_tokens
    return preprocessors.apply_objective(
      ds, sequence_length, self.objective(), limit, self.features
    )


def add_generated_task(
  name: str = GENERATED,
  config: GeneratedTreesConfig = GeneratedTreesConfig(),
  preprocessing: PreprocessingConfig | None = None,
  cache_dir: str | None = None,
) -> CommentTreeTask:
  """Registers (or replaces) a task of generated trees with their own vocabulary.

  Masks are all `<mask>` and text is left as generated unless `preprocessing` says
  otherwise: the closed-form entropies hold for that.

  Args:
    name: what SeqIO is to know it by.
    config: of the trees.
    preprocessing: how trees become subtrees, and what is predicted of them.
    cache_dir: where the vocabulary lies.
  """
  return add_task(settings_tasks.generated_task(name, config, preprocessing, cache_dir))


def add_files_task(
  name: str,
  files: str | Sequence[str],
  vocabulary: str,
  held_out_share: float = HELD_OUT_SHARE,
  preprocessing: PreprocessingConfig = PreprocessingConfig(),
  files_format: str | None = None,
) -> CommentTreeTask:
  """Registers (or replaces) a task of trees in files.

  Args:
    name: what SeqIO is to know it by.
    files: a file, a glob, a folder, or several of those; or the folder of a dataset
      made by `commentree build`, which has splits of its own.
    vocabulary: a SentencePiece model or tokenizer.json, from `commentree vocab`.
    held_out_share: share of the trees in the 'validation' split.
    preprocessing: how trees become masked subtrees.
    files_format: of the files, as in `readers.FORMATS`; None to tell it from each.
  """
  return add_task(
    settings_tasks.files_task(
      name, files, vocabulary, held_out_share, preprocessing, files_format
    )
  )


def add_task(task: TreeTask, features: Sequence[str] = ()) -> CommentTreeTask:
  """Registers (or replaces) a task under its name.

  Args:
    task: the task.
    features: as `CommentTreeTask` takes them.
  """
  ours = CommentTreeTask(
    task.name, task.tree_source, task.tokenizer, task.preprocessing, features
  )
  if task.name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add_provider(task.name, ours)
  return ours


def get_task(name: str) -> CommentTreeTask:
  """Returns a registered task.

  Raises:
    UserError: if no such name is known, or it is not of comment trees.
  """
  if name in seqio.MixtureRegistry.names():
    tasks = ", ".join(task.name for task in seqio.MixtureRegistry.get(name).tasks)
    raise UserError(
      f"MIXTURE_OR_TASK_NAME = {name!r}: is a mixture, where one task is wanted: name"
      f" one of {tasks}"
    )
  ours = [
    known
    for known in seqio.TaskRegistry.names()
    if isinstance(seqio.TaskRegistry.get(known), CommentTreeTask)
  ]
  if name not in ours:
    known = ", ".join(sorted((*ours, *seqio.MixtureRegistry.names())))
    raise UserError(
      f"MIXTURE_OR_TASK_NAME = {name!r}: no such task of comment trees, nor mixture;"
      f" there are {known or 'none'}{suggestion(name, known.split(', '))}"
    )
  return seqio.TaskRegistry.get(name)


def add_mixture(name: str, rates: Mapping[str, float]) -> seqio.Mixture:
  """Registers (or replaces) a mixture of registered tasks of comment trees.

  SeqIO wants all tasks of a mixture to have the same features: those that a task lacks
  are added to it, filled with default values. For our trainer they change nothing.

  Args:
    name: what SeqIO is to know it by.
    rates: by task, relative to the others.

  Raises:
    UserError: for a rate that is none, or tasks that do not mix.
  """
  mixture_config.shares(name, rates)
  tasks = [get_task(task) for task in rates]
  wanted = {feature for task in tasks for feature in task.output_features}
  tasks = [add_task(task, tuple(wanted)) for task in tasks]
  for task in tasks[1:]:
    if tuple(task.output_features) != tuple(tasks[0].output_features):
      raise UserError(
        f"{name}: {tasks[0].name!r} has features that {task.name!r} lacks or the other"
        " way round: give both the same labels and discourse markers"
      )
  if name in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(name)
  return seqio.MixtureRegistry.add(name, list(rates.items()))


def get_parts(name: str) -> list[MixedTask[CommentTreeTask]]:
  """Returns the tasks of a mixture as it names them, or one task.

  Raises:
    UserError: if no such name is known; or a mixture's tasks are not all of
      comment trees, or not of one vocabulary, or predict different things.
  """
  if name not in seqio.MixtureRegistry.names():
    return [MixedTask(get_task(name), Fraction(1))]
  mixture = seqio.MixtureRegistry.get(name)
  tasks = _tasks_of(mixture)
  for task in tasks:
    if not isinstance(task, CommentTreeTask):
      raise UserError(
        f"{name}: its task {task.name!r} is not of comment trees; register tasks with"
        " commentree.tasks.seqio_tasks.registry"
      )
  rates = {task.name: mixture.get_rate(task) for task in tasks}
  for task in tasks[1:]:
    _check_mix(name, tasks[0], task)
  return [
    MixedTask(t, share) for t, share in zip(tasks, mixture_config.shares(name, rates))
  ]


def _tasks_of(mixture: seqio.Mixture) -> list[seqio.Task]:
  """The tasks of a mixture and of those in it, in the order they are named."""
  found: dict[str, seqio.Task] = {}
  for name in mixture.rate_per_task_name:
    if name in seqio.MixtureRegistry.names():
      found |= {t.name: t for t in _tasks_of(seqio.MixtureRegistry.get(name))}
    else:
      found[name] = seqio.TaskRegistry.get(name)
  return list(found.values())


def _check_mix(name: str, one: CommentTreeTask, other: CommentTreeTask) -> None:
  """Raises UserError if two tasks cannot be trained on together."""
  prints = one.tokenizer.fingerprint, other.tokenizer.fingerprint
  if prints[0] != prints[1]:
    raise UserError(
      f"{name}: the vocabularies of {one.name!r} and {other.name!r} differ"
      f" ({one.tokenizer.path}, fingerprint {prints[0]}; {other.tokenizer.path},"
      f" {prints[1]}): a mixture needs one for all"
    )
  predicted = [_predicted(task.preprocessing) for task in (one, other)]
  if predicted[0] != predicted[1]:
    raise UserError(
      f"{name}: {one.name!r} predicts {predicted[0]} where {other.name!r} predicts"
      f" {predicted[1]}: one model has one head"
    )


def _predicted(preprocessing: PreprocessingConfig) -> str:
  """What a task predicts, in words."""
  if preprocessing.objective.name == "regress":
    return "numbers"
  return ", ".join(label_objectives.label_names(preprocessing)) or "tokens"
