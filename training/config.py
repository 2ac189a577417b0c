"""Settings of the trainer: plain data, importable without JAX.

gin binds these fields; see `launch/settings/configurables.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from commentree.errors import UserError
from commentree.models.config import Condition
from commentree.settings import (
  MayChange,
  NonNegative,
  NonNegativeInt,
  PositiveInt,
  check_fields,
  check_names,
  check_range,
)
from commentree.training.optim.optimizer_config import OptimizerConfig

XlaPreset = Literal["auto", "none", "vmem_32", "vmem_64"]

# With a head; see `f1`.
_F1_METRICS = tuple(
  f"{of}/{mean}" for of in ("f1", "span_f1") for mean in ("micro", "macro")
)
# Of numbers; see `regression`.
_REGRESSION_METRICS = ("r2", "pearson", "pairwise_accuracy")
# See `matching_statistics`.
_RECALL_METRICS = tuple(
  f"true/reply_matching/{by}{of}/{value}"
  for by in ("matcher", "vectors")
  for of in ("", "_of_parent")
  for value in ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
)

_LAST_OF_ALL_STEPS = 2**31 - 1  # that JAX counts in an int32

MESH_AXES = ("slice", "data", "fsdp", "model")
"""Axes of the mesh, slowest network first: `slice` crosses the data-centre network."""

BATCH_AXES = ("slice", "data", "fsdp")
"""Axes of the mesh that share out the examples of a batch."""

MeshAxes = str | tuple[str, ...] | None

# Logical axes of parameters and activations to axes of the mesh. An array takes the
# first rule that fits each of its axes, and no mesh axis twice.
DEFAULT_AXIS_RULES: tuple[tuple[str, MeshAxes], ...] = (
  ("batch", BATCH_AXES),
  ("vocab", "model"),
  ("mlp", "model"),
  ("heads", "model"),
  ("joined_kv", "model"),
  ("embed", None),
  ("kv", None),
  ("length", None),
  ("layers", None),
  ("relpos_buckets", None),
  ("vectors", None),
  ("ancestor_distance", None),
  ("positions", None),
  ("types", None),
  ("languages", None),
  ("labels", None),
  ("next_labels", None),
  ("recurrent", None),
  ("gates", None),
)

# What gin/partitioning/<name>.gin sets: the axis that takes the devices left over, and
# whether tensors are cut (None: over as many devices as the user says).
PRESETS: dict[str, dict[str, int | None]] = {
  "dp": {"fsdp_parallel": 1, "model_parallel": 1},
  "fsdp": {"fsdp_parallel": -1, "model_parallel": 1},
  "tp": {"fsdp_parallel": 1, "model_parallel": None},
  "fsdp_tp": {"fsdp_parallel": -1, "model_parallel": None},
}


@dataclasses.dataclass(frozen=True)
class PartitioningConfig:
  """How arrays are spread over devices.

  The mesh has the axes `MESH_AXES`; `data` takes the devices that the others leave.

  Attributes:
    num_slices: slices joined by the data-centre network; None: as the devices say.
      Examples are shared out over slices, parameters are repeated on each.
    fsdp_parallel: devices that share out examples, and parameters and optimizer state
      as well (ZeRO-3; Rajbhandari et al. 2020); -1: all that `model_parallel` leaves.
    model_parallel: devices that share the work on each example: heads, the width of
      the MLP, the vocabulary (tensor parallelism; Shoeybi et al. 2019).
    logical_axis_rules: pairs of a logical axis and a mesh axis, several or None, as
      T5X's; the first that fits counts.
    fsdp_min_elements: a parameter that the rules leave whole is shared out over `fsdp`
      along its largest dimension that divides, if it has at least so many elements;
      and its optimizer state over `data`, with `shard_optimizer`.
    shard_optimizer: whether optimizer state lies shared out over `data` as well, and
      each device updates its part of the parameters (ZeRO-1; Rajbhandari et al. 2020):
      gradients are then added up by parts, and new parameters gathered.
    replicated_max_elements: larger parameters that still are whole on every device are
      reported by name.
  """

  num_slices: PositiveInt | None = None
  fsdp_parallel: int = 1
  model_parallel: PositiveInt = 1
  logical_axis_rules: tuple[tuple[str, MeshAxes], ...] = DEFAULT_AXIS_RULES
  fsdp_min_elements: NonNegativeInt = 2**16
  shard_optimizer: bool = False
  replicated_max_elements: NonNegativeInt = 2**20

  def __post_init__(self):
    check_fields(self)
    if self.fsdp_parallel != -1:
      check_range(
        "PartitioningConfig", "fsdp_parallel", self.fsdp_parallel, 1, whole=True
      )
    rules = tuple(map(self._rule, self.logical_axis_rules))
    object.__setattr__(self, "logical_axis_rules", rules)

  @staticmethod
  def _rule(rule: Any) -> tuple[str, MeshAxes]:
    """Checks a rule; gin hands over lists, and a frozen configuration hashes."""
    if isinstance(rule, (list, tuple)) and len(rule) == 2 and isinstance(rule[0], str):
      logical, target = rule
      axes = (target,) if isinstance(target, str) else tuple(target or ())
      if all(axis in MESH_AXES for axis in axes):
        return logical, target if isinstance(target, str) else axes or None
    raise UserError(
      f"PartitioningConfig.logical_axis_rules has {rule!r}: each must be (logical axis,"
      f" mesh axis), the latter of {', '.join(map(repr, MESH_AXES))}, a tuple of those,"
      " or None"
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are written and which are kept.

  A checkpoint is also written at the last step, on SIGTERM and SIGINT, and after an
  evaluation that is the best so far.

  Attributes:
    period: steps between checkpoints.
    period_minutes: most minutes between checkpoints, however slow steps are; None for
      no limit.
    keep: newest ones kept.
    keep_best: best ones kept besides.
    best_metric: what decides, of the first evaluation dataset: 'true/loss',
      'shuffled/minus_true' (how much the content of ancestors helps), 'none/accuracy';
      of a slice 'true/by_depth/3/loss'; with a head 'true/span_f1/micro' or
      'true/r2'; how well threads find their replies,
      'true/reply_matching/matcher/recall_at_1'.
    save_timeout_seconds: a checkpoint not on disk by then stops the run.
    save_attempts: saves that may fail in a row before the run stops.
  """

  period: PositiveInt = 1000
  period_minutes: Annotated[float, Meta(ge=0.01)] | None = None
  keep: PositiveInt = 3
  keep_best: NonNegativeInt = 1
  best_metric: str = "true/loss"
  save_timeout_seconds: Annotated[float, Meta(ge=1)] = 1800.0
  save_attempts: PositiveInt = 3

  def __post_init__(self):
    check_fields(self)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What an evaluation measures.

  Attributes:
    conditions: which ancestors the targets see: all of theirs, those of others,
      the parent alone, none.
    depth_edges: first depth of each group of targets reported together.
    frequency_ranks: likewise of groups of tokens by how frequent they are in the
      training data, 0 the most frequent.
    bags_of_words: whether to tell what bags of words lose, with the words of the
      thread and without.
    reply_matching: whether to tell how well comments' vectors find the comments that
      answer them.
  """

  conditions: tuple[Condition, ...] = ("true", "shuffled", "parent_only", "none")
  depth_edges: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 10)
  frequency_ranks: tuple[int, ...] = (0, 100, 1_000, 10_000)
  bags_of_words: bool = True
  reply_matching: bool = True

  def __post_init__(self):
    check_fields(self)
    if not self.conditions or len(set(self.conditions)) < len(self.conditions):
      raise UserError(
        f"EvalConfig.conditions = {self.conditions}: must name at least one, none twice"
      )
    for field in ("depth_edges", "frequency_ranks"):
      edges = getattr(self, field)
      rises = all(a < b for a, b in itertools.pairwise(edges))
      if not edges or edges[0] != 0 or not rises:
        raise UserError(f"EvalConfig.{field} = {edges}: must rise from 0")

  def check_metric(self, owner: str, name: str) -> None:
    """Raises UserError unless there is such a metric, by its path in the results."""
    condition, _, rest = str(name).partition("/")
    parts = rest.split("/")
    values = ["loss", "accuracy", *(["minus_true"] if condition != "true" else [])]
    sound = len(parts) == 1 or (len(parts) == 3 and parts[0].startswith("by_"))
    is_recall = name in _RECALL_METRICS
    if is_recall and not self.reply_matching:
      raise UserError(f"{owner} = {name!r}: needs EvalConfig.reply_matching = True")
    of_head = rest in (*_F1_METRICS, *_REGRESSION_METRICS)
    if is_recall or of_head or (sound and parts[-1] in values):
      if condition in self.conditions:
        return
      raise UserError(
        f"{owner} = {name!r}: EvalConfig.conditions = {self.conditions} lacks"
        f" {condition!r}"
      )
    raise UserError(
      f"{owner} = {name!r}: no such metric: name an ancestor condition and 'loss',"
      " 'accuracy' or 'minus_true', as in 'true/loss' or 'shuffled/minus_true'; of a"
      " slice as in 'true/by_depth/3/loss'; with a head 'f1' or 'span_f1', as in"
      " 'true/f1/macro', or 'r2', 'pearson' or 'pairwise_accuracy'; of replies as in"
      " 'true/reply_matching/matcher/recall_at_1'"
    )


@dataclasses.dataclass(frozen=True)
class HealthConfig:
  """When a host counts as lost, and a run as standing still.

  Attributes:
    host_timeout_seconds: a host that is not heard of for so long is lost: its process
      is frozen, or its machine or network is gone.
    stall_timeout_seconds: a host whose main thread reports no progress for so long
      stands still, though its process lives.
    allowances: seconds instead of `stall_timeout_seconds` for what may take longer, by
      what the main thread does.
    waiting_phases: what a host may be in while it only waits for another that is
      elsewhere.
  """

  host_timeout_seconds: Annotated[float, Meta(ge=2)] = 60.0
  stall_timeout_seconds: Annotated[float, Meta(ge=1)] = 1800.0
  allowances: Mapping[str, Annotated[float, Meta(ge=1)]] = dataclasses.field(
    default_factory=lambda: {
      "data": 86400.0,
      "compile": 7200.0,
      "checkpoint": 7200.0,
      "state": 7200.0,
    }
  )
  waiting_phases: tuple[str, ...] = ("step", "eval", "log")

  def __post_init__(self):
    check_fields(self)

  def allowance(self, what: str) -> float:
    """Seconds that a main thread may be in `what` without a sign of progress."""
    return self.allowances.get(what, self.stall_timeout_seconds)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """A training run.

  Attributes:
    model_dir: folder of checkpoints, logs and the run's record.
    train_steps: last step; None where `train_epochs` tells it.
    train_epochs: passes over the training data, from whose size and `batch_size` the
      last step follows; None where `train_steps` tells it.
    batch_size: forests in a global batch.
    random_seed: of initial parameters and dropout.
    eval_period: steps between evaluations; 0 for one at the end alone.
    eval_batches: most batches of an evaluation; None for all.
    patience: evaluations in a row that may bring no better
      `CheckpointConfig.best_metric`; after so many the run ends. None: it ends at
      `train_steps`.
    log_period: steps between lines on the console, if seconds have passed too.
    console_seconds: least seconds between those lines.
    gradient_accumulation_steps: microbatches that a batch is cut into.
    stop_on_nonfinite: stop at a loss or gradient that is not finite; if False such
      a step changes no parameter and is counted.
    initial_checkpoint_path: a checkpoint whose parameters a new run starts from: of
      commentree or T5X, or a folder of safetensors; see docs/warm_starts.md. Its
      optimizer state and step are left behind.
    warm_start_rules: triples (regular expression over a parameter's name, name of the
      array it comes from or None for a fresh one, what is done to that), which come
      before those that the kind of checkpoint has; see `warm_starts.rules.Rule`.
    trackers: what the run is reported to besides metrics.jsonl: 'tensorboard', 'wandb',
      'mlflow', or a name that is registered; see docs/monitoring.md.
    tracker_project: W&B project, MLflow experiment; None for 'commentree'.
    profile_steps: the first and the last step of a trace for XProf, in
      MODEL_DIR/profile; None for none. See docs/monitoring.md.
    compile_cache_dir: folder of compiled programs, shared by runs; the user's cache
      folder if None.
    xla_preset: options of the TPU compiler for the train step: 'vmem_32' and 'vmem_64'
      give an operation so many MiB of on-chip memory, 'none' leaves it to the compiler,
      'auto' takes what is fastest on chips where they were compared. Results differ by
      rounding alone.
    optimizer: optimizer and schedule.
    partitioning: devices.
    checkpoint: checkpoints.
    evaluation: evaluations.
    health: when a host counts as lost.
  """

  model_dir: MayChange[str]
  train_steps: MayChange[PositiveInt | None]
  batch_size: PositiveInt
  train_epochs: MayChange[Annotated[float, Meta(ge=0.01)] | None] = None
  random_seed: NonNegativeInt = 0
  eval_period: MayChange[NonNegativeInt] = 1000
  eval_batches: MayChange[PositiveInt | None] = None
  patience: MayChange[PositiveInt | None] = None
  log_period: MayChange[PositiveInt] = 10
  console_seconds: MayChange[NonNegative] = 5.0
  gradient_accumulation_steps: MayChange[PositiveInt] = 1
  stop_on_nonfinite: MayChange[bool] = True
  initial_checkpoint_path: MayChange[str | None] = None
  warm_start_rules: MayChange[tuple[tuple[str, str | None, str], ...]] = ()
  trackers: MayChange[tuple[str, ...]] = ("tensorboard",)
  tracker_project: MayChange[str | None] = None
  profile_steps: MayChange[tuple[int, int] | None] = None
  compile_cache_dir: MayChange[str | None] = None
  xla_preset: MayChange[XlaPreset] = "auto"
  optimizer: OptimizerConfig = OptimizerConfig()
  partitioning: MayChange[PartitioningConfig] = PartitioningConfig()
  checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
  evaluation: MayChange[EvalConfig] = EvalConfig()
  health: MayChange[HealthConfig] = HealthConfig()

  def __post_init__(self):
    check_fields(self)
    if (self.train_steps is None) == (self.train_epochs is None):
      raise UserError(
        f"TRAIN_STEPS = {self.train_steps} and TRAIN_EPOCHS = {self.train_epochs}: give"
        " one of them; None takes back what a gin file sets"
      )
    if self.patience is not None:
      check_range("TrainConfig", "eval_period", self.eval_period, 1, whole=True)
    if self.profile_steps is not None:
      object.__setattr__(self, "profile_steps", self._profile_steps())
    check_names("TrainConfig", "trackers", self.trackers, "tracker")
    rules = tuple(map(self._warm_start_rule, self.warm_start_rules))
    object.__setattr__(self, "warm_start_rules", rules)
    if rules and self.initial_checkpoint_path is None:
      raise UserError(
        "TrainConfig.warm_start_rules: there is no initial_checkpoint_path to apply"
        " them to"
      )
    if not self.model_dir or not isinstance(self.model_dir, str):
      raise UserError(f"TrainConfig.model_dir = {self.model_dir!r}: must name a folder")
    if self.batch_size % self.gradient_accumulation_steps:
      raise UserError(
        f"TrainConfig.gradient_accumulation_steps = {self.gradient_accumulation_steps}:"
        f" must divide batch_size = {self.batch_size}"
      )
    if self.checkpoint.keep_best:
      metric = self.checkpoint.best_metric
      self.evaluation.check_metric("CheckpointConfig.best_metric", metric)
    elif self.patience is not None:
      raise UserError(
        f"TrainConfig.patience = {self.patience}: needs CheckpointConfig.keep_best of"
        " at least 1, to know what came before"
      )

  @property
  def last_step(self) -> int:
    """`train_steps`; where data are yet to tell it, the largest there can be."""
    return _LAST_OF_ALL_STEPS if self.train_steps is None else self.train_steps

  def patience_is_over(self, step: int, best_step: int | None) -> bool:
    """Whether `patience` evaluations have passed since the best one, by a step."""
    if self.patience is None or best_step is None:
      return False
    return step // self.eval_period - best_step // self.eval_period >= self.patience

  def _profile_steps(self) -> tuple[int, int]:
    """Checks them; gin hands over lists."""
    steps = self.profile_steps
    if (
      isinstance(steps, (list, tuple))
      and len(steps) == 2
      and all(type(step) is int for step in steps)
      and 1 <= steps[0] <= steps[1] <= self.last_step
    ):
      return steps[0], steps[1]
    raise UserError(
      f"TrainConfig.profile_steps = {steps!r}: must be the first and the last step to"
      f" profile, of 1 to {self.last_step}, as in PROFILE_STEPS=(10, 15)"
    )

  @staticmethod
  def _warm_start_rule(rule: Any) -> tuple[str, str | None, str]:
    """Checks a rule; gin hands over lists, and the third may be left out."""
    if isinstance(rule, (list, tuple)) and len(rule) in (2, 3):
      parameter, source, transform = (*rule, "")[:3]
      texts = (parameter, source or "", transform)
      if all(isinstance(text, str) for text in texts):
        return parameter, source, transform
    raise UserError(
      f"TrainConfig.warm_start_rules has {rule!r}: each must be (regular expression,"
      " name of an array or None, what is done to it)"
    )
