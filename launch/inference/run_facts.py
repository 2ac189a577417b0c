"""What a run's settings say to those who use its model."""

from __future__ import annotations

import dataclasses
import functools

from ...tasks import forest_layout, generated, objectives
from ...tasks.data_config import DataConfig
from ...tasks.markers import all_markers
from ...tasks.objectives_causal import CausalObjective
from ...tasks.pieces import PieceBuilder
from ...tasks.vocabularies import Tokenizer
from ..configurables import RunConfig

_GENERATED = "commentree_generated"


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """A run, as far as its settings tell.

  Attributes:
    config: the settings.
    tokenizer: the vocabulary.
    builder: makes nodes of trees.
  """

  config: RunConfig
  tokenizer: Tokenizer
  builder: PieceBuilder

  @property
  def objective(self) -> str:
    """The name of what the model was trained to predict."""
    return self.config.data.objective.name

  @functools.cached_property
  def causal(self) -> CausalObjective | None:
    """How a comment is read in order, if the model was trained to (`clm`)."""
    if self.objective != "clm":
      return None
    built = objectives.build(self.config.data, self.tokenizer)
    assert isinstance(built, CausalObjective)
    return built

  @property
  def extras(self) -> tuple[str, ...]:
    """Optional features of a batch in which comments are read as in training."""
    return () if self.causal is None else self.causal.extras

  @property
  def decoder_length(self) -> int:
    """Tokens in a decoder row."""
    return forest_layout.row_lengths(self.config.data.task_feature_lengths)[1]


def of_run(config: RunConfig) -> RunFacts:
  """Finds a run's vocabulary; its trees are not looked at.

  A post is answered for as any comment is, though training may not have predicted it.

  Raises:
    UserError: if there is no such task.
  """
  data = config.data
  tokenizer = _tokenizer(data)
  builder = PieceBuilder(
    tokenizer,
    dataclasses.replace(data.trees, target_post=True),
    data.cleaning,
    data.markers,
    data.pieces,
  )
  return RunFacts(config, tokenizer, builder)


def _tokenizer(data: DataConfig) -> Tokenizer:
  name = data.mixture_or_task_name
  if name == _GENERATED:
    return Tokenizer(
      lambda: generated.vocabulary(data.generated, data.markers, data.cache_dir)
    )
  if data.vocabulary is not None:
    vocabulary = data.vocabulary
    return Tokenizer(lambda: vocabulary, all_markers(data.markers))
  # Somebody's own task; to know it takes SeqIO.
  from ...tasks import registry

  return registry.get_task(name).tokenizer
