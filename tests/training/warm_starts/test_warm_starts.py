"""Runs and models that start from checkpoints of T5X, and of ours."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.tests.support.consoles import printed
from commentree.tests.support.training import stub
from commentree.tests.support.training.warm_starts import written_by_t5x
from commentree.tests.support.training.warm_starts.started import abstract_params, draw
from commentree.training import initial_state, partitioning
from commentree.training import train as trainer
from commentree.training.checkpointing import run_record
from commentree.training.optim.optimizer_config import OptimizerConfig, ScheduleConfig
from commentree.training.warm_starts import apply, assignments


def abstract(**changes):
  """Returns the abstract parameters of a small T5, and how to draw some."""
  config = ModelConfig(**{**written_by_t5x.CONFIG, **changes})
  return abstract_params(config), functools.partial(draw, config)


def started(path, own=(), **changes):
  """Returns the plan, and the parameters by name."""
  like, draw = abstract(**changes)
  config = ModelConfig(**{**written_by_t5x.CONFIG, **changes})
  source, plan = assignments.plan_for(path, apply.specs_of(like), own, config)
  params = apply.fill(plan, source, like, draw)
  return plan, partitioning.flatten_names(jax.tree.map(np.asarray, params))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  folder = tmp_path_factory.mktemp("t5") / "checkpoint_1000"
  return written_by_t5x.write(folder, written_by_t5x.t5_arrays())


def of_t5(name):
  return written_by_t5x.t5_arrays()[f"target.{name}"]


def test_a_t5_of_t5x_goes_to_its_places_and_what_it_lacks_is_drawn(t5):
  plan, params = started(t5)
  assert plan.fresh() == ["ancestors.distance_bias"]
  assert plan.unused == ()
  assert plan.left_behind == sum(
    name.startswith("state.") for name in written_by_t5x.t5_arrays()
  )
  # The vector for no ancestors has the size of a state.
  scale = of_t5("encoder.encoder_norm.scale")
  np.testing.assert_array_equal(params.pop("ancestors.null_vector"), scale)
  assert not params.pop("ancestors.distance_bias").any()
  params.pop("decoder.relpos_bias.rel_embedding")
  for name, values in params.items():
    np.testing.assert_array_equal(values, of_t5(name), err_msg=name)


def test_a_causal_decoders_positions_become_those_of_both_sides(t5, tmp_path):
  name = "decoder.relpos_bias.rel_embedding"
  _, params = started(t5)
  # Up to seven tokens away, each side has a column for each distance, as T5 has.
  for distance in range(8):
    causal = of_t5(name)[:, distance]
    np.testing.assert_allclose(params[name][:, distance], causal, rtol=1e-6)
    np.testing.assert_allclose(params[name][:, 16 + distance], causal, rtol=1e-6)
  # The encoder's are as they were, and so are those of a checkpoint of ours.
  encoders = "encoder.relpos_bias.rel_embedding"
  np.testing.assert_array_equal(params[encoders], of_t5(encoders))
  arrays = written_by_t5x.t5_arrays()
  arrays["target.ancestors.null_vector"] = np.ones(16, np.float32)
  ours = written_by_t5x.write(tmp_path / "checkpoint_1", arrays)
  np.testing.assert_array_equal(started(ours)[1][name], of_t5(name))


def test_a_table_of_causal_positions_is_taken_as_it_is_and_made_of_that_of_both_sides(
  t5, tmp_path
):
  both, causal = (
    f"decoder.relpos_bias.{kind}rel_embedding" for kind in ("", "causal_")
  )
  _, params = started(t5, causal_position_buckets=True)
  table = of_t5(both)
  np.testing.assert_array_equal(params[causal], table)
  assert both not in params
  # What sees both ways has a column for up to seven tokens away, and then wider ones.
  arrays = written_by_t5x.t5_arrays()
  arrays["target.ancestors.null_vector"] = np.ones(16, np.float32)
  ours = written_by_t5x.write(tmp_path / "both" / "checkpoint_1", arrays)
  _, params = started(ours, causal_position_buckets=True)
  np.testing.assert_allclose(params[causal][:, :8], table[:, :8], rtol=1e-6)
  for distance in (8, 9, 10):
    np.testing.assert_allclose(params[causal][:, distance], table[:, 8], rtol=1e-6)
  np.testing.assert_allclose(params[causal][:, 31], table[:, 15], rtol=1e-6)
  # And back.
  arrays[f"target.{causal}"] = arrays.pop(f"target.{both}")
  ours = written_by_t5x.write(tmp_path / "causal" / "checkpoint_1", arrays)
  _, params = started(ours, causal_position_buckets=True)
  np.testing.assert_array_equal(params[causal], table)
  _, params = started(ours)
  np.testing.assert_allclose(params[both][:, :8], table[:, :8], rtol=1e-6)
  np.testing.assert_allclose(params[both][:, 16:24], table[:, :8], rtol=1e-6)


def test_scanned_layers_hold_the_same_numbers(t5):
  plan, params = started(t5, scan_layers=True)
  assert plan.unused == ()
  for name in ("decoder.layers.mlp.wo.kernel", "encoder.layers.attention.key.kernel"):
    layers = [of_t5(name.replace("layers", f"layers_{i}")) for i in (0, 1)]
    np.testing.assert_array_equal(params[name], np.stack(layers))


def test_t5xs_own_scanned_layers_lie_along_the_second_axis(tmp_path):
  """As its scalable_t5 has them: `encoder.encoder.<…>`, layers along axis 1."""
  arrays = written_by_t5x.t5_arrays()
  for name in [n for n in arrays if ".layers_0." in n and n.startswith("target.")]:
    layers = [arrays.pop(name.replace("layers_0", f"layers_{i}")) for i in (0, 1)]
    side = name.split(".")[1]
    stacked = name.replace(f"{side}.layers_0", f"{side}.{side}")
    arrays[stacked] = np.stack(layers, axis=1)
  folder = written_by_t5x.write(tmp_path / "checkpoint_1", arrays)
  for scan in (False, True):
    _, params = started(folder, scan_layers=scan)
    name = "decoder.layers_1.self_attention.query.kernel"
    values = params["decoder.layers.self_attention.query.kernel"][1] if scan else None
    np.testing.assert_array_equal(params.get(name, values), of_t5(name))


def test_bfloat16_becomes_float32_of_the_same_value(tmp_path):
  arrays = {
    name: array.astype(ml_dtypes.bfloat16) if name.startswith("target.") else array
    for name, array in written_by_t5x.t5_arrays().items()
  }
  folder = written_by_t5x.write(tmp_path / "checkpoint_1", arrays)
  _, params = started(folder, scan_layers=True)
  assert {values.dtype for values in params.values()} == {np.dtype(np.float32)}
  name = "token_embedder.embedding"
  np.testing.assert_array_equal(params[name], arrays[f"target.{name}"].astype("f4"))


def test_a_larger_vocabulary_keeps_the_old_rows_and_starts_new_ones_amid_them(t5):
  plan, params = started(t5, vocab_size=40)
  grown = {"token_embedder.embedding": 0, "decoder.logits_dense.kernel": 1}
  assert {line.parameter for line in plan.of("grown")} == set(grown)
  for name, axis in grown.items():
    old, new = np.split(params[name], [32], axis)
    np.testing.assert_array_equal(old, of_t5(name))
    mean = of_t5(name).mean(axis, keepdims=True)
    np.testing.assert_allclose(new, np.broadcast_to(mean, new.shape), atol=1e-7)


def test_logits_of_t5_1_0_come_from_its_one_table(tmp_path):
  arrays = written_by_t5x.t5_arrays()
  del arrays["target.decoder.logits_dense.kernel"]
  for name in [n for n in arrays if ".mlp.wi_0." in n]:
    arrays[name.replace("wi_0", "wi")] = arrays.pop(name)
    del arrays[name.replace("wi_0", "wi_1")]
  folder = written_by_t5x.write(tmp_path / "checkpoint_1", arrays)
  plan, params = started(folder, mlp_activations=("relu",))
  assert plan.unused == ()
  expected = arrays["target.token_embedder.embedding"].T / math.sqrt(16)
  np.testing.assert_allclose(params["decoder.logits_dense.kernel"], expected, rtol=1e-6)
  tied, own = started(folder, mlp_activations=("relu",), logits_via_embedding=True)
  assert params.keys() - own.keys() == {"decoder.logits_dense.kernel"}
  assert tied.unused == ()
  assert tied.fresh() == plan.fresh()


def test_logits_of_t5_1_1_are_not_left_out_for_its_table(t5):
  with pytest.raises(UserError, match="logits_via_embedding = False") as raised:
    started(t5, logits_via_embedding=True)
  assert "\n" not in str(raised.value)
  plan, _ = started(t5, logits_via_embedding=True, head="classification", num_labels=2)
  assert plan.unused == ("target.decoder.logits_dense.kernel",)


def test_a_part_of_t5_that_is_missing_is_no_new_parameter(tmp_path):
  arrays = written_by_t5x.t5_arrays()
  del arrays["target.decoder.layers_1.mlp.wo.kernel"]
  folder = written_by_t5x.write(tmp_path / "checkpoint_1", arrays)
  with pytest.raises(UserError, match=r"decoder\.layers_1\.mlp\.wo.*is not there"):
    started(folder)


def test_layers_beyond_ours_are_told(t5):
  plan, _ = started(t5, num_decoder_layers=1)
  assert len(plan.unused) == 14
  assert all(".layers_1." in name for name in plan.unused)


def test_rules_of_ones_own_decide_the_rest(t5):
  own = [
    (r"decoder\.layers_(\d)\.encoder_decoder_attention\..*", None),
    (r"decoder\.(layers_\d)\.self_attention\.query\.kernel",
     r"target.encoder.\1.attention.query.kernel"),
  ]  # fmt: skip
  plan, params = started(t5, own)
  assert len(plan.of("fresh")) == 1 + 8
  np.testing.assert_array_equal(
    params["decoder.layers_1.self_attention.query.kernel"],
    of_t5("encoder.layers_1.attention.query.kernel"),
  )
  assert "target.decoder.layers_0.self_attention.query.kernel" in plan.unused


def test_orbax_checkpoints_with_and_without_state_and_target_are_read(tmp_path):
  arrays = {
    name.removeprefix("target."): array
    for name, array in written_by_t5x.t5_arrays().items()
    if name.startswith("target.")
  }
  tree = partitioning.flax.traverse_util.unflatten_dict(arrays, sep=".")
  with ocp.PyTreeCheckpointer(use_ocdbt=False) as plain:
    plain.save(tmp_path / "plain", tree)
    plain.save(tmp_path / "flax", {"params": tree})
  with ocp.StandardCheckpointer() as standard:
    standard.save(tmp_path / "t5x" / "state", {"target": tree, "state": {"step": 3}})
  del arrays["decoder.relpos_bias.rel_embedding"]
  for folder in ("plain", "flax", "t5x"):
    _, params = started(tmp_path / folder)
    for name, values in arrays.items():
      np.testing.assert_array_equal(params[name], values)


def test_a_host_reads_the_parts_of_its_devices_each_once(t5, monkeypatch):
  """Eight devices, of which two at a time hold copies of a quarter of the rows."""
  like, _ = abstract()
  source, plan = assignments.plan_for(t5, apply.specs_of(like))
  name = "token_embedder.embedding"
  (line,) = (line for line in plan.lines if line.parameter == name)
  quarters = [(slice(8 * i, 8 * i + 8), slice(None)) for i in (2, 2, 3, 3, 0, 0, 1, 1)]
  reads, original = [], source.read

  class Watched:
    path, kind, arrays = source.path, source.kind, source.arrays

    def read(self, name, index):
      reads.append(index[0])
      return original(name, index)

  def ask_each_device(shape, sharding, callback):
    return [callback(index) for index in quarters]

  monkeypatch.setattr(jax, "make_array_from_callback", ask_each_device)
  only = dataclasses.replace(plan, lines=(line,))
  parts = apply.load(only, Watched(), like)[name]
  assert reads == [slice(start, start + 8) for start in (16, 24, 0, 8)]
  for part, index in zip(parts, quarters):
    np.testing.assert_array_equal(part, of_t5(name)[index])


# ---- Runs --------------------------------------------------------------------------


@pytest.fixture
def run(model, console):
  def go(config):
    return trainer.train(
      config, model, lambda share: stub.Batches(share), {}, console=console
    )

  return go


def stub_checkpoint(folder, **changes):
  rng = np.random.default_rng(5)
  arrays = {
    "target.embedding": rng.normal(size=(stub.VOCAB, stub.WIDTH)),
    "target.scale": np.full(stub.WIDTH, 2.0),
    "target.kernel": rng.normal(size=(stub.WIDTH, 4 * stub.WIDTH)),
    "target.out": rng.normal(size=(4 * stub.WIDTH, stub.VOCAB)),
    "target.old": np.zeros(3),
    "state.step": np.array(99),
    **changes,
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  return arrays, written_by_t5x.write(folder, arrays)


def test_a_run_says_what_it_took_notes_it_and_takes_it_once(
  make_config, run, console, tmp_path
):
  arrays, folder = stub_checkpoint(tmp_path / "elsewhere" / "checkpoint_99")
  frozen = OptimizerConfig(
    name="sgd", schedule=ScheduleConfig(name="constant", learning_rate=0.0)
  )
  config = make_config(
    train_steps=2, optimizer=frozen, initial_checkpoint_path=str(folder)
  )
  assert run(config)["step"] == 2
  said = printed(console)
  assert f"took parameters from {folder} (rule 2: initial_checkpoint_path" in said
  assert "4 loaded" in said
  assert "unused: target.old" in said
  assert "left behind: optimizer state and step, 1 arrays" in said
  kept = saved_params(tmp_path / "run" / "checkpoint_2")
  for name in ("embedding", "scale", "kernel", "out"):
    np.testing.assert_array_equal(kept[name], arrays[f"target.{name}"])
  (start,) = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
  assert start["warm_start"]["path"] == str(folder)
  assert start["warm_start"]["loaded"] == 4
  assert start["warm_start"]["unused"] == ["target.old"]

  # The run's own checkpoint counts from now on; the other may be gone.
  shutil.rmtree(folder)
  assert run(make_config(**{**vars(config), "train_steps": 3}))["step"] == 3
  again = printed(console)[len(said) :]
  assert "restored step 2" in again
  assert "took parameters" not in again
  starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
  assert ["warm_start" in start for start in starts] == [True, False]


def slow_runs(tmp_path, make_config):
  """Returns how to make settings of runs in which `out` alone is fresh."""
  _, folder = stub_checkpoint(tmp_path / "elsewhere" / "checkpoint_99")

  def settings(name, steps, multiple):
    schedule = ScheduleConfig(name="constant", learning_rate=0.01, warmup_steps=0)
    return make_config(
      model_dir=str(tmp_path / name),
      train_steps=steps,
      initial_checkpoint_path=str(folder),
      warm_start_rules=(("out", None),),
      optimizer=OptimizerConfig("sgd", schedule, None, fresh_multiple=multiple),
    )

  return settings


def test_what_no_array_is_for_learns_at_a_rate_of_its_own(
  make_config, run, console, tmp_path
):
  settings = slow_runs(tmp_path, make_config)
  after = {}
  for multiple in (1, 2, 4):
    run(settings(f"run{multiple}", 1, multiple))
    after[multiple] = saved_params(tmp_path / f"run{multiple}" / "checkpoint_1")
  for name in ("embedding", "scale", "kernel"):
    np.testing.assert_array_equal(after[4][name], after[1][name])
  step = after[2]["out"] - after[1]["out"]
  assert np.abs(step).max() > 1e-5
  np.testing.assert_allclose(
    after[4]["out"] - after[1]["out"], 3 * step, rtol=1e-3, atol=1e-7
  )
  assert "learn at 4 times the learning rate (OptimizerConfig.fresh_multiple)" in (
    printed(console)
  )


def test_a_run_that_goes_on_knows_what_was_fresh(make_config, run, tmp_path):
  settings = slow_runs(tmp_path, make_config)
  run(settings("whole", 3, 8))
  run(settings("parts", 1, 8))
  for steps in (2, 3):
    # What it started from is gone, and what is read is the record.
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    run(settings("parts", steps, 8))
  whole, parts = (
    saved_params(tmp_path / name / "checkpoint_3") for name in ("whole", "parts")
  )
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_first_checkpoint_that_was_converted_tells_what_was_fresh(
  make_config, run, tmp_path
):
  settings = slow_runs(tmp_path, make_config)
  run(settings("run", 1, 8))
  noted = json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]
  (tmp_path / "run" / "run.json").unlink()
  file = tmp_path / "run" / "checkpoint_1" / initial_state.WARM_START_FILE
  file.write_text(json.dumps(noted["warm_start"]))
  run(settings("run", 2, 8))
  run(settings("whole", 2, 8))
  one, other = (
    saved_params(tmp_path / name / "checkpoint_2") for name in ("run", "whole")
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
  # From now on the run's own record has it, as that checkpoint will be deleted.
  starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
  assert starts[0]["warm_start"] == noted["warm_start"]


def saved_params(folder):
  with ocp.PyTreeCheckpointer() as plain:
    return plain.restore(folder / "state")["target"]


def test_the_optimizer_starts_fresh_and_the_step_at_0(make_config, run, tmp_path):
  _, folder = stub_checkpoint(tmp_path / "checkpoint_99")
  config = make_config(train_steps=1, initial_checkpoint_path=str(folder))
  assert run(config)["step"] == 1
  with ocp.PyTreeCheckpointer() as plain:
    tree = plain.restore(tmp_path / "run" / "checkpoint_1" / "state")
  counts = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree["state"])
    if "count" in str(path[-1]) or "step" in str(path[-1])
  ]
  assert {int(count) for count in counts} == {1}


def test_a_run_that_does_not_fit_its_start_begins_nothing(make_config, run, tmp_path):
  wide = np.zeros((stub.VOCAB, 2 * stub.WIDTH))
  _, folder = stub_checkpoint(tmp_path / "checkpoint_99", **{"target.embedding": wide})
  with pytest.raises(UserError, match=r"embedding: has shape \(16, 16\) there"):
    run(make_config(initial_checkpoint_path=str(folder)))
  assert not list((tmp_path / "run").glob("checkpoint_*"))


def test_there_is_no_checkpoint_is_said_so(make_config, run, tmp_path):
  with pytest.raises(UserError, match=r"nowhere: there is no such checkpoint"):
    run(make_config(initial_checkpoint_path=str(tmp_path / "nowhere")))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no checkpoint that can be read"):
    run(make_config(initial_checkpoint_path=str(tmp_path / "empty")))


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ([("a",)], "each must be"),
    ([("a", 3, "")], "each must be"),
    ("ab", "each must be"),
  ],
)
def test_rules_of_another_form_are_refused_at_once(make_config, rules, message):
  with pytest.raises(UserError, match=message):
    make_config(initial_checkpoint_path="x", warm_start_rules=rules)


def test_rules_without_a_checkpoint_are_refused(make_config):
  with pytest.raises(UserError, match="no initial_checkpoint_path"):
    make_config(warm_start_rules=[("a", None)])


def test_our_own_checkpoint_that_rotted_is_not_taken(make_config, run, tmp_path):
  run(make_config(train_steps=1))
  folder = tmp_path / "run" / "checkpoint_1"
  for file in (folder / "state").rglob("*"):
    if file.is_file() and file.parent.name == "d" and "process" in str(file):
      content = bytearray(file.read_bytes())
      content[-1] ^= 1
      file.write_bytes(content)
  fresh = make_config(
    model_dir=str(tmp_path / "new"), initial_checkpoint_path=str(folder)
  )
  with pytest.raises(UserError, match=r"checkpoint_1.* cannot be read .*damaged"):
    run(fresh)


def test_all_devices_get_their_parts(t5):
  """Over however many devices there are here, by rows."""
  mesh = Mesh(np.array(jax.devices()), ("rows",))
  like, draw = abstract()
  rows = NamedSharding(mesh, PartitionSpec("rows"))
  leaves = partitioning.flatten_names(like)
  name = "token_embedder.embedding"
  leaves[name] = jax.ShapeDtypeStruct(leaves[name].shape, jnp.float32, sharding=rows)
  spread = partitioning.flax.traverse_util.unflatten_dict(leaves, sep=".")
  source, plan = assignments.plan_for(t5, apply.specs_of(spread))
  params = partitioning.flatten_names(apply.fill(plan, source, spread, draw))
  assert params[name].sharding == rows
  np.testing.assert_array_equal(params[name], of_t5(name))


def test_run_json_of_a_run_without_a_warm_start_has_none(tmp_path):
  run_record.write(tmp_path, run_record.RunRecord({}), {}, 0)
  (start,) = json.loads((tmp_path / "run.json").read_text())["starts"]
  assert "warm_start" not in start
