from __future__ import annotations

import types

import jax
import pytest

from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.tests.support.models import forests
from commentree.tests.support.training import stub
from commentree.training.partitioning import flatten_names
from commentree.training.tpu_compile import flops

# Looked up, added, or of a number of rows that does not count.
TABLES = ("embedding", "distance_bias", "queries", "transitions")


def device(kind: str):
  return types.SimpleNamespace(device_kind=kind)


def test_peaks_are_known_by_the_devices_name():
  assert flops.peak_flops(device("NVIDIA H100 80GB HBM3")) == 989e12
  assert flops.peak_flops(device("NVIDIA H100 PCIe")) == 756e12
  assert flops.peak_flops(device("TPU v5 lite")) == 197e12
  assert flops.peak_flops(device("TPU v5p")) == 459e12
  assert flops.peak_flops(device("cpu")) is None


@pytest.mark.parametrize(
  ("scan_layers", "changes"),
  [
    (False, {}),
    (True, {}),
    (False, {"vectors_per_comment": 16}),
    (
      False,
      {
        "context": "concatenated",
        "max_context_tokens": 16,
        "ancestor_pointer": True,
      },
    ),
    (False, {"context": "none"}),
    (
      False,
      {
        "nearest_context_tokens": 16,
        "ancestor_pointer": True,
        "vectors_to_logits": True,
      },
    ),
    (False, {"ancestor_pointer": True}),
    (False, {"num_thread_layers": 2, "vectors_per_comment": 4}),
  ],
)
def test_the_count_of_a_step_is_near_the_compilers(scan_layers, changes):
  # Wide enough for the products to outweigh what is not counted.
  model = CommentTreeModel(
    ModelConfig(
      vocab_size=512,
      emb_dim=256,
      num_heads=4,
      head_dim=64,
      mlp_dim=512,
      dtype="float32",
      scan_layers=scan_layers,
      **changes,
    )
  )
  batch = stub.random_batch(0, 4)
  shapes = {name: values.shape for name, values in batch.items()}
  params = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )["params"]
  counted = flops.train_step_flops(model.config, params, batch)
  if scan_layers:
    unrolled = ModelConfig(**{**vars(model.config), "scan_layers": False})
    same = jax.eval_shape(
      lambda: CommentTreeModel(unrolled).get_initial_variables(
        jax.random.key(0), shapes
      )
    )["params"]
    assert counted == flops.train_step_flops(unrolled, same, batch)
    return
  step = jax.jit(jax.grad(lambda p: model.loss_sums(p, batch, None)[0]))
  compiler = step.lower(params).cost_analysis()["flops"]
  assert counted == pytest.approx(compiler, rel=0.15)


def test_the_last_layer_is_counted_of_masked_tokens_alone():
  """Of what follows self-attention, where it is computed of them alone."""
  by_row = stub.random_batch(0, 4)
  by_forest = forests.regrouped(by_row, 1)
  # A row of each example's three.
  assert by_forest["decoder_masked_positions"].shape[-1] <= 8
  shapes = {name: values.shape for name, values in by_forest.items()}

  def counted(batch, **changes):
    config = ModelConfig(vocab_size=512, ancestor_positions="none", **changes)
    variables = jax.eval_shape(
      lambda: CommentTreeModel(config).get_initial_variables(jax.random.key(0), shapes)
    )
    # Logits are of masked tokens in both.
    same = {**batch, "decoder_target_tokens": by_row["decoder_target_tokens"]}
    return flops.train_step_flops(config, variables["params"], same)

  config = ModelConfig()
  inner = config.num_heads * config.head_dim
  vectors = 1 + by_row["encoder_slot_depths"].shape[-1] * config.vectors_per_comment
  of_token = 2 * config.emb_dim * inner + 2 * inner * vectors
  of_token += (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
  saved = 4 * 2 * 8
  assert counted(by_row) - counted(by_forest) == 3 * 2 * saved * of_token
  assert counted(by_row) == counted(by_forest, scan_layers=True)


@pytest.mark.parametrize(
  "changes", [{}, {"logits_via_embedding": True}, {"family": "roberta"}]
)
def test_a_subtree_more_in_the_vocabulary_costs_a_product_a_masked_token(changes):
  batch = stub.random_batch(0, 4)
  shapes = {name: values.shape for name, values in batch.items()}

  def counted(vocab_size):
    model = CommentTreeModel(ModelConfig(vocab_size=vocab_size, **changes))
    variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.key(0), shapes)
    )
    return flops.train_step_flops(model.config, variables["params"], batch)

  masked = batch["decoder_target_tokens"].size
  assert counted(513) - counted(512) == 3 * 2 * 128 * masked


def test_matching_replies_costs_two_maps_and_a_comparison_of_all_pairs():
  batch = stub.random_batch(0, 4)
  shapes = {name: values.shape for name, values in batch.items()}

  def counted(weight):
    model = CommentTreeModel(ModelConfig(vocab_size=512, reply_matching_weight=weight))
    variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.key(0), shapes)
    )
    return flops.train_step_flops(model.config, variables["params"], batch)

  targets, width = batch["target_depths"].size, 128
  expected = 3 * 2 * (2 * width**2 * targets + width * targets**2)
  assert counted(0.1) - counted(0) == expected


@pytest.mark.parametrize(
  "changes",
  [
    {"ancestor_pointer": True, "vectors_to_logits": True, "num_thread_layers": 1},
    {"pooling": "attention", "vectors_per_comment": 2, "reply_matching_weight": 0.1},
    {"context": "concatenated", "ancestor_positions": "depth", "num_languages": 2},
    {"ancestor_positions": "distance", "family": "roberta"},
    {"head": "tagging", "num_labels": 3, "tagger": "crf"},
    {"head": "tagging", "num_labels": 3, "tagger": "gru"},
  ],
)
def test_a_parameter_that_is_multiplied_has_a_name_that_is_counted(changes):
  batch = stub.random_batch(0, 4)
  shapes = {name: values.shape for name, values in batch.items()}
  model = CommentTreeModel(ModelConfig(vocab_size=512, **changes))
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes)
  )
  for name, leaf in flatten_names(variables["params"]).items():
    is_counted = name.endswith((".kernel", ".recurrent_kernel"))
    assert is_counted or leaf.ndim < 2 or name.endswith(TABLES), name
