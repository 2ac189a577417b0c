"""Does context help? Held-out loss under the four ancestor conditions.

Every masked token counts the same. Results are over all tokens and over slices of them:
by the depth of the comment, by whether the token occurs in an ancestor, by its rank in
the training data, and by groups of tokens that the caller names. With a head, for which
labels stand where tokens do, also as F1 (`f1`); of numbers as R², correlation and order
(`regression`).

What is claimed of context is a paired difference, on the same tokens, with a standard
error over trees (`tree_sums`). Where the ancestors of another tree are one of the
conditions, batches that hold one tree alone are left out of all, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from commentree.models import conditions as conditions_lib
from commentree.models import occurrences
from commentree.models.interface import Model
from commentree.models.network import of_target
from commentree.training import data_input, partitioning, runtime
from commentree.training import state as state_lib
from commentree.training.checkpointing import checkpoint_choice, checkpoints, storage
from commentree.training.cluster import hosts
from commentree.training.cluster.coordination.watchdog import Watchdog
from commentree.training.config import EvalConfig, HealthConfig, PartitioningConfig
from commentree.training.data_input import EvalData, HostBatch
from commentree.training.metrics import bags_of_words, f1, regression
from commentree.training.metrics.attention_statistics import ATTENTION
from commentree.training.metrics.baselines import Baseline, Placed
from commentree.training.metrics.baselines import load as load_baselines
from commentree.training.metrics.evaluation_sums import (
  OCCURRENCES,
  OF_TOKENS,
  Results,
  Totals,
  range_names,
)
from commentree.training.metrics.matching_statistics import MATCHING
from commentree.training.metrics.unigram import UNIGRAM, Unigram
from commentree.training.metrics.vector_statistics import VECTORS

TokenGroups = Mapping[str, Sequence[int] | np.ndarray]


class Evaluator:
  """Evaluates parameters; compiled once.

  Attributes:
    sums: the jitted pass over a placed batch, `(params, batch, baseline)` to what
      `Totals` adds up.
  """

  def __init__(
    self,
    model: Model,
    mesh: Mesh,
    partitioning_config: PartitioningConfig,
    config: EvalConfig,
    token_groups: TokenGroups | None = None,
    label_names: Sequence[str] = (),
  ):
    """Compiles nothing yet.

    Args:
      model: the model.
      mesh: the mesh.
      partitioning_config: the rules.
      config: what to measure.
      token_groups: ids of target tokens to report apart, by name.
      label_names: names of the labels that a head predicts, by number.
    """
    self._mesh = mesh
    self._partitioning = partitioning_config
    self._config = config
    self._groups = {
      name: np.unique(np.asarray(ids, np.int32))
      for name, ids in (token_groups or {}).items()
    }
    self._labels = tuple(label_names)
    self._numbers = model.config.head == "regression"
    self._of_tokens = not (self._labels or self._numbers)
    self._compiled: dict[Any, jax.stages.Compiled] = {}
    self.sums = jax.jit(
      self._make_sums(model), out_shardings=partitioning.replicated(mesh)
    )

  def __call__(
    self,
    params: Any,
    batches: Iterable[HostBatch],
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    baseline: Baseline | None = None,
  ) -> Results | None:
    """Evaluates.

    Args:
      params: the parameters.
      batches: this process's share of the held-out batches, at least one.
      limit: most batches; None for all.
      stop: asked before every batch; if any process's says so, all stop.
      baseline: what is known of the training data, for the baselines and the slices by
        frequency; none of these if None. The same on all processes.

    Returns:
      The results, or None if stopped.

    Raises:
      UserError: if no batch holds a masked token.
    """
    placed = None
    if baseline is not None:
      placed = baseline.placed(self._mesh, with_bags=self.has_bags)
    totals = Totals(
      self._names(placed),
      self._slices(by_frequency=placed is not None),
      with_accuracy=not self._numbers,
    )
    try:
      for batch in data_input.global_batches(batches, self._mesh, limit, stop):
        compiled = self._compile(params, batch, placed)
        totals.add(jax.device_get(compiled(params, batch, placed)))
    except data_input.Stopped:
      return None
    return totals.results(self._labels)

  @property
  def has_bags(self) -> bool:
    """Whether bags of words are among the baselines: where tokens are predicted."""
    return self._config.bags_of_words and self._of_tokens

  def _compile(self, params: Any, batch: Any, baseline: Placed | None) -> Any:
    key = jax.tree.structure(baseline)
    if key not in self._compiled:
      with partitioning.in_mesh(self._mesh, self._partitioning):
        self._compiled[key] = self.sums.lower(params, batch, baseline).compile()
      hosts.barrier("evaluation compiled")
    return self._compiled[key]

  def _names(self, baseline: Placed | None) -> list[str]:
    """Returns what there is a loss of: the conditions, and the baselines."""
    names: list[str] = list(self._config.conditions)
    if baseline is not None:
      names.append(UNIGRAM)
      if baseline.bag_weights is not None:
        names += bags_of_words.names(self._config.conditions)
    return names

  def _slices(self, *, by_frequency: bool) -> dict[str, list[str]]:
    """Returns the names of slices of the tokens, by kind."""
    tokens = self._of_tokens
    names = {
      "by_occurrence": list(OCCURRENCES) if tokens else [],
      "by_frequency": [],
      "by_depth": range_names(self._config.depth_edges),
      "by_group": list(self._groups),
    }
    if tokens and by_frequency:
      # Ranks are counted from 1 where people read them.
      edges = [edge + 1 for edge in self._config.frequency_ranks]
      names["by_frequency"] = range_names(edges)
    return names

  @staticmethod
  def _shortfall(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns how many ancestors targets have, and how many fewer if shuffled."""
    return {
      "ancestors": jnp.sum(batch["ancestor_slots"] > 0, axis=-1),
      "lacking": conditions_lib.ancestors_lacking(batch),
    }

  def _make_sums(self, model: Model):
    depth_edges = np.asarray(self._config.depth_edges, np.int32)
    rank_edges = np.asarray(self._config.frequency_ranks, np.int32)
    members = _group_table(self._groups)
    conditions = self._config.conditions
    matches = self._config.reply_matching and self._of_tokens

    def in_slices(batch, tokens, depths, unigram: Unigram | None) -> dict[str, Any]:
      """Returns which of the slices each masked token is in, `[B, G, M, S]`."""
      wanted = batch["decoder_target_tokens"]
      found = {
        "by_depth": _in_ranges(depths, depth_edges),
        "by_group": jnp.asarray(members)[jnp.minimum(wanted, len(members) - 1)],
      }
      if self._of_tokens:
        occurs = occurrences.in_ancestors(batch)[0] > 0
        found["by_occurrence"] = jnp.stack([occurs, ~occurs], axis=-1)
        if unigram is not None:
          found["by_frequency"] = _in_ranges(unigram.ranks[wanted], rank_edges)
      return found

    def sums(
      params: Any, batch: Mapping[str, jax.Array], baseline: Placed | None
    ) -> dict[str, Any]:
      unigram: Unigram | None = None
      tokens = {name: model.evaluate_batch(params, batch, name) for name in conditions}
      first = next(iter(tokens.values()))
      weights, targets = first["weights"], first["targets"]
      used = weights > 0
      # Of numbers none is correct: see `Totals`.
      losses = [
        (each["nll"], each.get("correct", jnp.zeros_like(each["nll"])))
        for each in tokens.values()
      ]
      if baseline is not None:
        unigram = baseline.unigram
        wanted = batch["decoder_target_tokens"]
        likeliest = jnp.argmin(unigram.ranks)
        losses.append((-unigram.log_probabilities[wanted], wanted == likeliest))
        if baseline.bag_weights is not None:
          of_bags = bags_of_words.losses(
            batch, unigram, baseline.bag_weights, conditions
          )
          # Their likeliest token is not looked for.
          losses += [(nll, jnp.zeros_like(nll)) for nll in of_bags]
      # 0 times a loss that is not finite is not 0.
      columns = jnp.stack(
        [jnp.where(used, x * weights, 0) for loss in losses for x in loss]
        + [jnp.where(used, weights, 0)],
        axis=-1,
      )
      depths = of_target(batch["target_depths"], targets)
      slices = in_slices(batch, tokens, depths, unigram)
      by_kind = {"all": jnp.ones((*weights.shape, 1)), **slices}
      precise = jax.lax.Precision.HIGHEST
      total = {
        kind: jnp.einsum("brmc,brms->cs", columns, x.astype("f4"), precision=precise)
        for kind, x in by_kind.items()
      }
      # Losses and tokens of each target; the losses are every other column.
      of_target_BGMT = jax.nn.one_hot(targets - 1, batch["target_depths"].shape[-1])
      per_token = jnp.concatenate(
        [by_kind[kind].astype("f4") for kind in OF_TOKENS if kind in by_kind],
        axis=-1,
      )
      per_target = jnp.einsum(
        "brmt,brmc,brms->btcs",
        of_target_BGMT,
        jnp.concatenate([columns[..., :-1:2], columns[..., -1:]], axis=-1),
        per_token,
        precision=precise,
      )
      return {
        "total": total,
        "counts": {
          c: f1.sums(tokens[c], self._labels) | regression.sums(tokens[c])
          for c in conditions
        },
        "targets": per_target,
        "trees": batch["target_trees"],
        "depths": _in_ranges(batch["target_depths"], depth_edges),
        **(self._shortfall(batch) if "shuffled" in conditions else {}),
        "comparable": conditions_lib.has_two_trees(batch),
        VECTORS: model.vector_sums(params, batch),
        MATCHING: model.recall_sums(params, batch) if matches else {},
        ATTENTION: tokens["true"].get("attention", {}) if "true" in tokens else {},
      }

    return sums


def _in_ranges(values: jax.Array, edges: np.ndarray) -> jax.Array:
  """Returns which of the ranges that begin at `edges` values are in, `[..., S]`."""
  return jax.nn.one_hot(
    jnp.searchsorted(edges, values, side="right") - 1, len(edges), dtype=jnp.float32
  )


def _group_table(groups: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns 1 where a token is in a group, `[tokens, groups]`; the last row is 0."""
  size = max((int(ids.max(initial=0)) for ids in groups.values()), default=0) + 2
  table = np.zeros((size, len(groups)), np.float32)
  for column, ids in enumerate(groups.values()):
    table[ids, column] = 1
  return table


def evaluate_checkpoint(
  model_dir: str,
  model: Model,
  eval_datasets: Mapping[str, EvalData],
  *,
  step: int | Literal["best"] | None = None,
  eval_batches: int | None = None,
  token_groups: TokenGroups | None = None,
  label_names: Sequence[str] = (),
  config: EvalConfig | None = None,
  partitioning_config: PartitioningConfig | None = None,
  best_metric: str = "true/loss",
  compile_cache_dir: str | None = None,
  watchdog: Watchdog | None = None,
) -> dict[str, Any]:
  """Evaluates a saved checkpoint.

  Args:
    model_dir: the run's folder.
    model: the model that was trained.
    eval_datasets: held-out data by name.
    step: which checkpoint; the newest if None.
    eval_batches: most batches; None for all.
    token_groups: ids of target tokens to report apart, by name.
    label_names: names of the labels that a head predicts, by number.
    config: what to measure.
    partitioning_config: devices; may differ from those of the run.
    best_metric: what 'best' means.
    compile_cache_dir: as `TrainConfig.compile_cache_dir`.
    watchdog: receives progress; none if None.

  Returns:
    `step`, `path`, and `results` by dataset.

  Raises:
    UserError: if there is no such checkpoint or it is of another model.
  """
  runtime.set_flags(compile_cache_dir)
  partitioning_config = partitioning_config or PartitioningConfig()
  folder = storage.as_path(model_dir)
  chosen = checkpoint_choice.choose(folder, step, best_metric)
  mesh = partitioning.make_mesh(partitioning_config)
  share = partitioning.data_share(mesh)
  example = next(next(iter(eval_datasets.values()))(share))
  rows = data_input.num_rows(example) * share.count
  data_input.check_batch_size(rows, mesh)
  like = state_lib.abstract_params(model, example, mesh, partitioning_config)
  path = checkpoints.path_of(folder, chosen)
  params = checkpoints.restore_params(path, like)
  evaluator = Evaluator(
    model,
    mesh,
    partitioning_config,
    config or EvalConfig(),
    token_groups,
    label_names,
  )
  watchdog = watchdog or Watchdog(HealthConfig())
  known = load_baselines(folder, mesh, storage.print_line)

  def go_on() -> bool:
    watchdog.at(chosen, "eval")
    return False

  results = {
    name: evaluator(params, dataset(share), eval_batches, go_on, known.get(name))
    for name, dataset in eval_datasets.items()
  }
  return {"step": chosen, "path": str(path), "results": results}
