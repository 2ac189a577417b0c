"""What a run's settings say to those who use its model."""

from __future__ import annotations

import dataclasses
import functools

from commentree.launch.settings import model_sizes
from commentree.launch.settings.configurables import RunConfig
from commentree.models.config import ModelConfig
from commentree.tasks.config import mixture_config
from commentree.tasks.config.objective import ObjectiveConfig
from commentree.tasks.config.preprocessing import PreprocessingConfig
from commentree.tasks.data_config import DataConfig
from commentree.tasks.forests import forest_layout
from commentree.tasks.objectives import objectives
from commentree.tasks.objectives.causal import CausalObjective
from commentree.tasks.sources import generated
from commentree.tasks.subtrees.subtree_builder import SubtreeBuilder
from commentree.tasks.trees.markers import all_markers
from commentree.tasks.vocabulary.vocabularies import Tokenizer


@dataclasses.dataclass(frozen=True)
class RunContext:
  """A run, as far as its settings tell.

  Attributes:
    config: the settings.
    tokenizer: the vocabulary.
    builder: makes nodes of trees.
  """

  config: RunConfig
  tokenizer: Tokenizer
  builder: SubtreeBuilder

  @functools.cached_property
  def model_config(self) -> ModelConfig:
    """The model's settings, with the sizes that follow from the data."""
    config = self.config
    return model_sizes.with_sizes(
      config.model,
      config.data.preprocessing,
      self.tokenizer.vocab_size,
      self.objectives[0],
    )

  @property
  def objectives(self) -> tuple[str, ...]:
    """What the model was trained to predict; several in a mixture of objectives."""
    return self.config.data.objective_names

  @functools.cached_property
  def causal(self) -> CausalObjective | None:
    """How comments are read in order, if the model was trained to (`clm`)."""
    if "clm" not in self.objectives:
      return None
    data = self.config.data
    objective = data.preprocessing.objective.named("clm")
    preprocessing = dataclasses.replace(data.preprocessing, objective=objective)
    built = objectives.build(preprocessing, self.tokenizer)
    assert isinstance(built, CausalObjective)
    return built

  @property
  def predicts_causally(self) -> CausalObjective | None:
    """`causal`, if that is all that the model was trained to."""
    return self.causal if self.objectives[0] == "clm" else None

  @property
  def decoder_length(self) -> int:
    """Tokens in a decoder row."""
    return forest_layout.row_lengths(self.config.data.task_feature_lengths)[1]


def of_run(config: RunConfig) -> RunContext:
  """Finds a run's vocabulary; its trees are not looked at.

  A post is answered for as any comment is, though training may not have predicted it.

  Raises:
    UserError: if there is no such task.
  """
  data = config.data
  tokenizer = _tokenizer(data)
  asked = data.preprocessing
  preprocessing = PreprocessingConfig(
    trees=dataclasses.replace(asked.trees, target_post=True),
    cleaning=asked.cleaning,
    markers=asked.markers,
    subtrees=asked.subtrees,
    objective=ObjectiveConfig(languages=asked.objective.languages),
  )
  builder = SubtreeBuilder(tokenizer, preprocessing)
  return RunContext(config, tokenizer, builder)


def _tokenizer(data: DataConfig) -> Tokenizer:
  name, vocabulary = data.mixture_or_task_name, data.vocabulary
  if vocabulary is None:
    # Of a run of generated trees whose settings come from no MODEL_DIR.
    with_spans = "span_corruption" in data.objective_names
    sentinels = generated.SENTINELS if with_spans else 0
    return Tokenizer(
      lambda: generated.vocabulary(
        data.generated, data.preprocessing.markers, data.cache_dir, sentinels
      )
    )
  own = not data.members() and name not in (
    mixture_config.GENERATED,
    mixture_config.FILES,
  )
  if not own:
    return Tokenizer(lambda: vocabulary, all_markers(data.preprocessing.markers))
  # Somebody's own task; to know its markers takes SeqIO.
  from commentree.tasks.seqio_tasks import registry

  (task, *_) = (part.task for part in registry.get_parts(name))
  return Tokenizer(lambda: vocabulary, task.tokenizer.markers)
