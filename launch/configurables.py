"""The settings that gin binds: every one a plain dataclass, none of them heavy."""

from __future__ import annotations

import dataclasses
import functools

import gin

from ..models.config import ModelConfig
from ..tasks.config import (
  CleaningConfig,
  CommentLabelsConfig,
  DiscourseMarkersConfig,
  LabelsConfig,
  MarkersConfig,
  TreeConfig,
)
from ..tasks.data_config import DataConfig
from ..tasks.forest_layout import ForestLayout
from ..tasks.generated_config import GeneratedTreesConfig
from ..tasks.masking import MaskingConfig
from ..tasks.objectives_config import ObjectiveConfig
from ..tasks.pieces import PiecesConfig
from ..training.config import (
  CheckpointConfig,
  EvalConfig,
  HealthConfig,
  OptimizerConfig,
  PartitioningConfig,
  ScheduleConfig,
  TrainConfig,
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """All settings of a run: the model, its data, its training."""

  model: ModelConfig
  data: DataConfig
  train: TrainConfig


@functools.cache
def register() -> tuple[type, ...]:
  """Makes the settings known to gin, once; returns them."""
  configs = (
    RunConfig,
    ModelConfig,
    DataConfig,
    ForestLayout,
    PiecesConfig,
    MaskingConfig,
    ObjectiveConfig,
    TreeConfig,
    CleaningConfig,
    MarkersConfig,
    LabelsConfig,
    CommentLabelsConfig,
    DiscourseMarkersConfig,
    GeneratedTreesConfig,
    TrainConfig,
    OptimizerConfig,
    ScheduleConfig,
    PartitioningConfig,
    CheckpointConfig,
    EvalConfig,
    HealthConfig,
  )
  for config in configs:
    gin.external_configurable(config, module="commentree")
  return configs
