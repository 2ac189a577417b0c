"""Does context help? Held-out loss under the four ancestor conditions.

Every masked token counts the same. Results are over all tokens and over slices of them:
by the depth of the comment, by whether the token occurs in an ancestor, by its rank in
the training data, and by groups of tokens that the caller names. With a head, for which
labels stand where tokens do, also as F1 (`f1`).

What is claimed of context is a paired difference, on the same tokens, with a standard
error over trees (`tree_sums`). Where the ancestors of another tree are one of the
conditions, batches that hold one tree alone are left out of all, and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..models import conditions as conditions_lib
from ..models.interface import Model
from ..models.network import of_target
from . import (
  checkpoint_choice,
  checkpoints,
  data_input,
  f1,
  hosts,
  partitioning,
  runtime,
  storage,
)
from . import state as state_lib
from .agreement import Agreement
from .config import EvalConfig, HealthConfig, PartitioningConfig
from .data_input import EvalData, HostBatch
from .evaluation_sums import OCCURRENCES, OF_TOKENS, Results, Totals, range_names
from .unigram import UNIGRAM, Unigram
from .unigram import load as target_counts_of
from .vector_statistics import VECTORS
from .watchdog import Watchdog

TokenGroups = Mapping[str, Sequence[int] | np.ndarray]


class Evaluator:
  """Evaluates parameters; compiled once.

  Attributes:
    sums: the jitted pass over a placed batch, `(params, batch, unigram)` to what
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
    self._compiled: dict[bool, jax.stages.Compiled] = {}
    self._place = data_input.Placer(mesh)
    self._agreement = Agreement(mesh)
    self.sums = jax.jit(
      self._make_sums(model), out_shardings=partitioning.replicated(mesh)
    )

  def __call__(
    self,
    params: Any,
    batches: Iterable[HostBatch],
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    target_counts: np.ndarray | None = None,
  ) -> Results | None:
    """Evaluates.

    Args:
      params: the parameters.
      batches: this process's share of the held-out batches, at least one.
      limit: most batches; None for all.
      stop: asked before every batch; if any process's says so, all stop.
      target_counts: how often each id is a target in the training data, for the
        unigram baseline and the slices by frequency; neither if None.

    Returns:
      The results, or None if stopped.

    Raises:
      UserError: if no batch holds a masked token.
    """
    unigram = None if target_counts is None else self._place_unigram(target_counts)
    totals = Totals(self._names(unigram), self._slices(unigram))
    padding: HostBatch = {}
    for batch in itertools.chain(
      itertools.islice(batches, limit), itertools.repeat(None)
    ):
      # Hosts run out of batches at different times, and all must take part in each.
      more, stopped = self._agreement(batch is not None, stop())
      if stopped:
        return None
      if not more:
        break
      if batch is not None:
        padding = {name: np.zeros_like(values) for name, values in batch.items()}
      placed = self._place(padding if batch is None else batch)
      compiled = self._compile(params, placed, unigram)
      totals.add(jax.device_get(compiled(params, placed, unigram)))
    return totals.results(self._labels)

  def _compile(self, params: Any, batch: Any, unigram: Unigram | None) -> Any:
    key = unigram is not None
    if key not in self._compiled:
      with partitioning.in_mesh(self._mesh, self._partitioning):
        self._compiled[key] = self.sums.lower(params, batch, unigram).compile()
      hosts.meet("evaluation compiled")
    return self._compiled[key]

  def _place_unigram(self, counts: np.ndarray) -> Unigram:
    sharding = partitioning.replicated(self._mesh)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape),
      Unigram.of_counts(counts),
    )

  def _names(self, unigram: Unigram | None) -> list[str]:
    """Returns what there is a loss of: the conditions, and the baseline."""
    return [*self._config.conditions, *([UNIGRAM] if unigram is not None else [])]

  def _slices(self, unigram: Unigram | None) -> dict[str, list[str]]:
    """Returns the names of slices of the tokens, by kind."""
    tokens = not self._labels
    names = {
      "by_occurrence": list(OCCURRENCES) if tokens else [],
      "by_frequency": [],
      "by_depth": range_names(self._config.depth_edges),
      "by_group": list(self._groups),
    }
    if tokens and unigram is not None:
      # Ranks are counted from 1 where people read them.
      edges = [edge + 1 for edge in self._config.frequency_ranks]
      names["by_frequency"] = range_names(edges)
    return names

  def _make_sums(self, model: Model):
    depth_edges = jnp.asarray(self._config.depth_edges)
    rank_edges = jnp.asarray(self._config.frequency_ranks)
    members = _group_table(self._groups)
    conditions = self._config.conditions

    def in_slices(batch, tokens, depths, unigram: Unigram | None) -> dict[str, Any]:
      """Returns which of the slices each masked token is in, `[B, R, M, S]`."""
      wanted = batch["decoder_target_tokens"]
      found = {
        "by_depth": _in_ranges(depths, depth_edges),
        "by_group": jnp.asarray(members)[jnp.minimum(wanted, len(members) - 1)],
      }
      if not self._labels:
        occurs = conditions_lib.is_in_ancestors(batch)
        found["by_occurrence"] = jnp.stack([occurs, ~occurs], axis=-1)
        if unigram is not None:
          found["by_frequency"] = _in_ranges(unigram.ranks[wanted], rank_edges)
      return found

    def sums(
      params: Any, batch: Mapping[str, jax.Array], unigram: Unigram | None
    ) -> dict[str, Any]:
      tokens = {name: model.evaluate_batch(params, batch, name) for name in conditions}
      first = next(iter(tokens.values()))
      weights, targets = first["weights"], first["targets"]
      used = weights > 0
      losses = [(each["nll"], each["correct"]) for each in tokens.values()]
      if unigram is not None:
        wanted = batch["decoder_target_tokens"]
        likeliest = jnp.argmin(unigram.ranks)
        losses.append((-unigram.log_probabilities[wanted], wanted == likeliest))
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
      of_target_BRMT = jax.nn.one_hot(targets - 1, batch["target_depths"].shape[-1])
      per_token = jnp.concatenate(
        [by_kind[kind].astype("f4") for kind in OF_TOKENS if kind in by_kind],
        axis=-1,
      )
      per_target = jnp.einsum(
        "brmt,brmc,brms->btcs",
        of_target_BRMT,
        jnp.concatenate([columns[..., :-1:2], columns[..., -1:]], axis=-1),
        per_token,
        precision=precise,
      )
      return {
        "total": total,
        "counts": {c: f1.sums(tokens[c], self._labels) for c in conditions},
        "targets": per_target,
        "trees": batch["target_trees"],
        "depths": _in_ranges(batch["target_depths"], depth_edges),
        "comparable": conditions_lib.has_two_trees(batch),
        VECTORS: model.vector_sums(params, batch),
      }

    return sums


def _in_ranges(values: jax.Array, edges: jax.Array) -> jax.Array:
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
    watchdog: is told of progress; none if None.

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
  counts = target_counts_of(folder)

  def go_on() -> bool:
    watchdog.at(chosen, "eval")
    return False

  results = {
    name: evaluator(params, dataset(share), eval_batches, go_on, counts.get(name))
    for name, dataset in eval_datasets.items()
  }
  return {"step": chosen, "path": str(path), "results": results}
