"""The real programs compiled for TPU slices, and what the reports say of them."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import get_args

import jax
import pytest

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.models.model import CommentTreeModel
from commentree.training import partitioning, state
from commentree.training.config import (
  EvalConfig,
  PartitioningConfig,
  TrainConfig,
  XlaPreset,
)
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.tpu_compile import (
  ahead_of_time,
  compiled_report,
  compiler_presets,
  topologies,
)
from commentree.training.tpu_compile.ahead_of_time import CompilePlan

# A forest of four rows: codegen, not analysis, takes the compiler's time.
FEATURES = {
  **{f"encoder_{name}": (4, 128) for name in ("input_tokens", "segment_ids")},
  "encoder_positions": (4, 128),
  "encoder_slot_depths": (16,),
  **{f"decoder_{name}": (4, 128) for name in ("input_tokens", "segment_ids")},
  "decoder_positions": (4, 128),
  "decoder_masked_positions": (4, 24),
  "decoder_target_tokens": (4, 24),
  "decoder_loss_weights": (4, 24),
  "ancestor_slots": (16, 4),
  "ancestor_distances": (16, 4),
  "target_depths": (16,),
  "target_trees": (16,),
}
COMMENTS = 12.0
LAYERS = {"num_encoder_layers": 3}
# The quickest to compile; the properties here are not about speed.
EFFORT = "O1"


def plan(
  topology="v5e:2x2", num_slices=1, *, model=None, optimizer="sgd", **axes
) -> CompilePlan:
  opened = topologies.open_topology(topology, num_slices)
  settings = {
    "vocab_size": 2048,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "ancestor_positions": "none",
    **(model or {}),
  }
  return CompilePlan(
    model=CommentTreeModel(ModelConfig(**settings)),
    config=TrainConfig(
      model_dir="nowhere",
      train_steps=100,
      batch_size=len(opened.devices),
      optimizer=OptimizerConfig(name=optimizer, clip_norm=None),
      partitioning=PartitioningConfig(fsdp_min_elements=2**10, **axes),
      # Each condition is one more pass to compile.
      evaluation=EvalConfig(conditions=("true", "shuffled")),
    ),
    feature_shapes=FEATURES,
    comments_per_forest=COMMENTS,
    topology=opened,
  )


@pytest.fixture(scope="module", autouse=True)
def flags():
  names = ("jax_threefry_partitionable", "jax_numpy_rank_promotion")
  before = {name: getattr(jax.config, name) for name in names}
  ahead_of_time.set_flags()
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="module")
def data_parallel():
  """(plan, report) on four chips that each hold the whole model, layers unrolled."""
  made = plan(model=LAYERS)
  return made, ahead_of_time.compile_program(made, effort=EFFORT)


@pytest.fixture(scope="module")
def sharded():
  """(plan, report) on two slices of v6e, parameters and Adam's state shared out."""
  made = plan("v6e:2x2", 2, optimizer="adamw", fsdp_parallel=-1)
  return made, ahead_of_time.compile_program(made, effort=EFFORT)


def parameter_bytes(made: CompilePlan) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.params)
  )


def sent(report, kind: str, network: str = "ICI") -> int:
  return sum(m.bytes for m in report.messages if (m.kind, m.network) == (kind, network))


def test_the_report_of_a_program_that_fits_is_whole(data_parallel):
  _, report = data_parallel
  assert report.fits
  for field in (
    "device_flops",
    "operations_seconds",
    "step_seconds",
    "comments_per_second_per_chip",
    "utilization",
    "model_flops",
    "compile_seconds",
  ):
    assert getattr(report, field) > 0, field
  assert report.utilization < 1
  assert report.unknown_loops == 0
  assert len(report.costliest) == compiled_report.COSTLIEST
  assert report.step_seconds >= report.operations_seconds
  assert report.comments == COMMENTS * 4
  rate = report.comments / report.step_seconds / report.chips
  assert report.comments_per_second_per_chip == pytest.approx(rate)
  memory = report.memory
  assert 0 < memory.arguments + memory.temporaries + memory.code < memory.limit
  assert memory.needed <= memory.limit


def test_a_device_does_its_share_of_the_models_flops(data_parallel):
  _, report = data_parallel
  # Products that are one-hot look-ups come on top, and tiny models have many.
  assert 0.8 < report.device_flops / (report.model_flops / 4) < 1.6


def test_kernels_are_told_as_a_range_that_the_step_counts(data_parallel, sharded):
  """On one slice and on two, whose devices hold rows of their own."""
  for _, report in (data_parallel, sharded):
    kinds = {(kind.source, kind.times) for kind in report.untimed}
    for stack, attention in (
      ("encode/encoder", "self"),
      ("decode/decoder", "self"),
      ("decode/decoder", "ancestor"),
    ):
      for name in (f"{attention}_attention_kernel", f"{attention}_attention_gradient"):
        assert any(stack in source and name in source for source, _ in kinds), kinds
    least, most = report.untimed_seconds
    assert 0 < least < most < report.operations_seconds


def test_where_the_time_goes_adds_up_to_the_step_and_little_has_no_place(
  data_parallel, sharded
):
  for _, report in (data_parallel, sharded):
    rows = report.roofline
    assert sum(row.seconds for row in rows) == pytest.approx(report.step_seconds)
    assert sum(row.flops for row in rows) == report.device_flops
    assert sum(row.unestimated for row in rows) == 0
    parts = {row.part for row in rows}
    assert parts >= {
      "embedding",
      "self-attention",
      "ancestor-attention",
      "MLP",
      "norms",
      "logits",
      "pooling",
      "optimizer",
      "collectives",
    }
    assert {row.phase for row in rows} == {"forward", "backward", "update", ""}
    other = sum(row.seconds for row in rows if row.part == "other")
    assert other < 0.05 * report.step_seconds


def test_data_parallel_devices_hold_all_parameters_and_add_up_gradients(data_parallel):
  made, report = data_parallel
  size = parameter_bytes(made)
  assert size <= report.memory.arguments < 1.2 * size
  # Besides, those of the position biases before they are summed over offsets.
  assert size <= sent(report, "all-reduce") < 1.3 * size


def test_fully_sharded_devices_hold_their_share_of_parameters_and_optimizer(sharded):
  made, report = sharded
  # Of parameters and two moments, a quarter: the slices repeat them.
  whole = 3 * parameter_bytes(made)
  batch = state.bytes_per_device(made.batch)
  share = (report.memory.arguments - batch) / whole
  assert 0.25 <= share < 0.30
  assert report.memory.arguments == pytest.approx(
    made.argument_bytes("train"), rel=0.05
  )


def test_only_gradients_cross_between_slices(sharded):
  made, report = sharded
  between = {m.kind for m in report.messages if m.network == "DCN"}
  assert between == {"all-reduce"}
  # Each device sends its quarter of the gradients.
  quarter = parameter_bytes(made) / 4
  assert quarter * 0.8 < sent(report, "all-reduce", "DCN") < quarter * 1.3
  assert report.dcn_seconds > 0
  assert sent(report, "all-gather") > 0


def test_scanned_layers_cost_what_unrolled_ones_do(data_parallel):
  _, unrolled = data_parallel
  made = plan(model={**LAYERS, "scan_layers": True})
  scanned = ahead_of_time.compile_program(made, effort=EFFORT)
  assert scanned.device_flops == unrolled.device_flops
  # Slicing the stacked parameters comes on top, much for layers as small as these; a
  # loop's body counted once would be far below.
  ratio = scanned.operations_seconds / unrolled.operations_seconds
  assert 0.8 < ratio < 2.0


def test_options_of_a_preset_reach_the_compiler_of_the_train_step(monkeypatch):
  # One that it does not know, so that it refuses them.
  monkeypatch.setitem(compiler_presets.OPTIONS, "vmem_32", {"xla_tpu_unheard_of": "1"})
  made = plan("v5e:1x1")
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_unheard_of"):
    ahead_of_time.compile_program(made, effort=EFFORT)
  other = plan("v5p:1x1x1")
  assert compiler_presets.options_for("auto", other.mesh.devices.flat[0]) == {}


def test_presets_are_for_tpus_and_known_options():
  tpu = plan("v5e:1x1").mesh.devices.flat[0]
  assert compiler_presets.options_for("none", tpu) == {}
  of_v6e = plan("v6e:1x1").mesh.devices.flat[0]
  for preset, device, kib in (
    ("auto", tpu, "32768"),
    ("auto", of_v6e, "65536"),
    ("vmem_32", of_v6e, "32768"),
    ("vmem_64", tpu, "65536"),
  ):
    assert compiler_presets.options_for(preset, jax.devices("cpu")[0]) == {}
    options = compiler_presets.options_for(preset, device)
    assert options == {"xla_tpu_scoped_vmem_limit_kib": kib}
  assert set(get_args(XlaPreset)) == {"auto", *compiler_presets.OPTIONS}


def test_the_family_of_roberta_compiles_with_everything_cut_over_chips():
  """Biases, tables, tied logits and their bias, over two of `model` and of `fsdp`."""
  model = {
    "family": "roberta",
    "mlp_activations": ("gelu_exact",),
  }
  made = plan("v5e:2x2", model=model, model_parallel=2, fsdp_parallel=-1)
  report = ahead_of_time.compile_program(made, effort=EFFORT)
  assert report.fits
  # Products that are one-hot look-ups come on top; see above.
  assert 0.8 < report.device_flops / (report.model_flops / 4) < 1.8
  whole = [
    name
    for name, leaf in partitioning.flatten_names(made.params).items()
    if partitioning.devices_per_copy(leaf.sharding) == 1
  ]
  assert not [name for name in whole if name.endswith((".kernel", ".embedding"))]


def test_the_evaluation_compiles_too():
  report = ahead_of_time.compile_program(plan("v5p:1x1x1"), "eval", effort=EFFORT)
  assert report.fits
  assert report.program == "eval"
  assert report.step_seconds > 0
  assert report.device_flops > 0


def test_what_does_not_fit_is_a_report_not_a_crash():
  wide = {"emb_dim": 8192, "mlp_dim": 65536, "num_encoder_layers": 4}
  report = ahead_of_time.compile_program(plan("v5e:1x1", model=wide), effort=EFFORT)
  assert not report.fits
  assert report.step_seconds is None
  assert report.memory.needed > report.memory.limit
  assert "does not fit: needs" in report.verdict()


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
      " temporaries (28.50G) exceeds available HBM (15.75G).",
      29.5,
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
      " space hbm. Used 23.29G of 15.48G hbm. Exceeded hbm capacity by 7.81G.",
      23.29,
    ),
    ("RESOURCE_EXHAUSTED: something else", None),
  ],
)
def test_refusals_are_read(message, needed):
  found = ahead_of_time.needed_bytes(message, argument_bytes=2**30)
  assert found == (needed and pytest.approx(needed * 2**30, rel=1e-6))


def test_a_batch_that_does_not_divide_is_one_line_with_the_flag():
  made = plan("v5e:4x4")
  config = dataclasses.replace(made.config, batch_size=24)
  with pytest.raises(UserError, match=r"--gin\.BATCH_SIZE=32") as caught:
    ahead_of_time.compile_program(dataclasses.replace(made, config=config))
  assert "\n" not in str(caught.value)


def test_the_report_survives_json(data_parallel):
  _, report = data_parallel
  loaded = json.loads(json.dumps(report.to_json()))
  assert loaded["memory"]["arguments"] == report.memory.arguments
  assert set(loaded) == {field.name for field in dataclasses.fields(report)}
  assert set(loaded["costliest"][0]) == {
    "name",
    "source",
    "place",
    "times",
    "milliseconds",
    "share",
  }


@pytest.mark.parametrize(
  ("source", "readable"),
  [
    ("jit(train_step)/add", "add"),
    (
      "jit(train_step)/transpose(jvp(CommentTreeTransformer))/"
      "CommentTreeTransformer.decode/decoder/decoder.run/while/body/closed_call/layers/"
      "layers/checkpoint/block/mlp/wo/dot_general",
      "backward decode/decoder/decoder.run/layers/mlp/wo/dot_general",
    ),
    (
      "jit(train_step)/transpose(jvp(CommentTreeTransformer))/"
      "CommentTreeTransformer.encode/encoder/checkpoint/rematted_computation/block/mlp",
      "again encode/encoder/mlp",
    ),
    (
      "jit(train_step)/transpose(jvp(encode))/encoder/encoder.run/encode/encoder/"
      "encoder.run/checkpoint/layers_11/mlp/wo/dot_general",
      "backward encode/encoder/encoder.run/layers/mlp/wo/dot_general",
    ),
  ],
)
def test_sources_lose_what_tracing_adds(source, readable):
  assert compiled_report.readable_source(source) == readable
