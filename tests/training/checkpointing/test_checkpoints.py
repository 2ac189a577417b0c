from __future__ import annotations

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from commentree.errors import UserError
from commentree.training import partitioning
from commentree.training.checkpointing import checkpoint_choice, checkpoints
from commentree.training.config import CheckpointConfig, PartitioningConfig
from commentree.training.state import TrainState, to_tree


def state_of(step: int) -> TrainState:
  whole = partitioning.replicated(partitioning.make_mesh(PartitioningConfig()))
  params = {"mlp": {"kernel": jnp.full((3, 2), step, jnp.float32)}}
  state = TrainState(jnp.int32(step), params, ({"count": jnp.int32(step)}, ()))
  return jax.device_put(state, whole)


def abstract(state: TrainState) -> TrainState:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


@pytest.fixture
def open_folder(tmp_path, lines):
  opened = []

  def make(**settings) -> checkpoints.Checkpoints:
    saved = checkpoints.Checkpoints(
      tmp_path, CheckpointConfig(**settings), lines.append
    )
    opened.append(saved)
    return saved

  yield make
  for saved in opened:
    saved.close()


def save(saved: checkpoints.Checkpoints, steps, losses=None) -> None:
  for step in steps:
    metrics = losses and {"true/loss": losses[step]}
    saved.save(state_of(step), step, {"next": 10 * step}, metrics)
  saved.wait()


def test_a_saved_state_comes_back_with_where_the_data_stood(open_folder, tmp_path):
  save(open_folder(), [1, 2])
  restored = open_folder().restore(abstract(state_of(0)))
  assert restored.path == tmp_path / "checkpoint_2"
  assert restored.data_state == {"next": 20}
  jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(2))


def test_the_layout_is_t5xs(open_folder, tmp_path):
  save(open_folder(), [7])
  assert (tmp_path / "checkpoint_7" / "dataset").is_dir()
  with ocp.PyTreeCheckpointer() as plain:
    tree = plain.restore(tmp_path / "checkpoint_7" / "state")
  np.testing.assert_array_equal(tree["target"]["mlp"]["kernel"], np.full((3, 2), 7))
  assert tree["state"]["step"] == 7
  assert tree["state"]["param_states"]["0"]["count"] == 7


def test_the_newest_and_the_best_are_kept(open_folder, tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: 2.0, 5: 2.5, 6: 2.2}
  save(open_folder(keep=2, keep_best=1), losses, losses)
  assert checkpoints.steps_in(tmp_path) == [2, 5, 6]
  assert checkpoint_choice.best_step(tmp_path, "true/loss") == 2
  assert checkpoint_choice.choose(tmp_path, "best", "true/loss") == 2
  assert checkpoint_choice.choose(tmp_path, None, "true/loss") == 6
  assert open_folder(keep=2).best() == checkpoint_choice.Best(2, -1.0)


def test_no_best_ones_are_kept_where_none_are_asked_for(open_folder, tmp_path):
  losses = {1: 1.0, 2: 2.0, 3: 3.0}
  save(open_folder(keep=1, keep_best=0), losses, losses)
  assert checkpoints.steps_in(tmp_path) == [3]


def test_of_accuracies_the_highest_is_best():
  assert checkpoint_choice.quality({"true/accuracy": 0.4}, "true/accuracy") == 0.4
  assert checkpoint_choice.quality({"true/loss": 0.4}, "true/loss") == -0.4
  better = {"shuffled/minus_true": 0.1}
  assert checkpoint_choice.quality(better, "shuffled/minus_true") == 0.1
  assert checkpoint_choice.quality({}, "true/loss") == -float("inf")


def test_what_a_killed_save_left_is_removed_and_said(open_folder, tmp_path, lines):
  save(open_folder(), [1])
  half = tmp_path / "checkpoint_2.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "checkpoint_1", half)
  restored = open_folder().restore(abstract(state_of(0)))
  assert restored.path.name == "checkpoint_1"
  assert not half.exists()
  assert any("checkpoint 2 was still being written" in line for line in lines)


def damage(path: pathlib.Path) -> None:
  for file in (path / "state").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.write_bytes(b"")


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(
  open_folder, tmp_path, lines
):
  save(open_folder(), [1, 2])
  damage(tmp_path / "checkpoint_2")
  saved = open_folder()
  restored = saved.restore(abstract(state_of(0)))
  assert restored.path.name == "checkpoint_1"
  assert (tmp_path / "unreadable_checkpoint_2").is_dir()
  assert any("checkpoint_2 cannot be read" in line for line in lines)
  save(saved, [2])
  assert checkpoints.steps_in(tmp_path) == [1, 2]


def test_when_every_checkpoint_is_damaged_nothing_is_touched(open_folder, tmp_path):
  save(open_folder(), [1])
  damage(tmp_path / "checkpoint_1")
  with pytest.raises(UserError, match="cannot be read, nor can any before it"):
    open_folder().restore(abstract(state_of(0)))
  assert (tmp_path / "checkpoint_1").is_dir()


def test_parameters_alone_can_be_read(open_folder, tmp_path):
  save(open_folder(), [3])
  like = abstract(state_of(0)).params
  params = checkpoints.restore_params(tmp_path / "checkpoint_3", like)
  np.testing.assert_array_equal(params["mlp"]["kernel"], np.full((3, 2), 3))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"mlp": {"bias": jnp.zeros(2)}}, r"another model: mlp\.bias is not there"),
    (
      {"mlp": {"kernel": jnp.zeros((3, 5))}},
      r"mlp\.kernel has shape \(3, 2\) there, \(3, 5\) here",
    ),
  ],
)
def test_parameters_of_another_model_are_named(open_folder, tmp_path, change, message):
  save(open_folder(), [3])
  with pytest.raises(UserError, match=message):
    checkpoints.restore_params(tmp_path / "checkpoint_3", change)


def test_a_step_that_is_not_there_is_answered_with_those_that_are(
  open_folder, tmp_path
):
  with pytest.raises(UserError, match="holds no checkpoint: name"):
    checkpoint_choice.choose(tmp_path / "nothing", None, "true/loss")
  save(open_folder(), [3, 5])
  with pytest.raises(UserError, match="no checkpoint of step 4, but 3, 5"):
    checkpoint_choice.choose(tmp_path, 4, "true/loss")
  with pytest.raises(UserError, match="no checkpoint was evaluated"):
    checkpoint_choice.choose(tmp_path, "best", "true/loss")


def test_saving_a_step_again_does_nothing(open_folder, tmp_path):
  saved = open_folder()
  save(saved, [1])
  saved.save(state_of(9), 1, {"next": 0}, None)
  saved.wait()
  state = tmp_path / "checkpoint_1" / "dataset" / "metadata"
  assert json.loads(state.read_text()) == {"next": 10}


def test_orbax_reads_what_is_written_and_what_orbax_wrote_is_read(
  open_folder, tmp_path
):
  save(open_folder(), [1], {1: 3.0})
  like = abstract(state_of(0))
  with ocp.CheckpointManager(
    tmp_path,
    item_names=("state", "dataset"),
    options=ocp.CheckpointManagerOptions(
      step_prefix="checkpoint", best_fn=lambda metrics: -metrics["true/loss"]
    ),
  ) as manager:
    read = ocp.args.Composite(
      state=ocp.args.StandardRestore(to_tree(like)), dataset=ocp.args.JsonRestore()
    )
    restored = manager.restore(manager.best_step(), args=read)
    assert restored["dataset"] == {"next": 10}
    assert restored["state"]["state"]["step"] == 1
    written = ocp.args.Composite(
      state=ocp.args.StandardSave(to_tree(state_of(2))),
      dataset=ocp.args.JsonSave({"next": 20}),
    )
    manager.save(2, args=written, metrics={"true/loss": 2.0}, force=True)
  saved = open_folder()
  assert saved.best() == checkpoint_choice.Best(2, -2.0)
  restored = saved.restore(like)
  assert restored.data_state == {"next": 20}
  jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(2))


def test_what_t5x_saved_of_our_state_comes_back(open_folder, tmp_path):
  """It leaves out dictionaries that hold nothing, and where the data stood."""
  tree = to_tree(state_of(4))
  assert tree["state"]["param_states"].pop("1") == {}
  with ocp.CheckpointManager(
    tmp_path,
    item_names=("state",),
    options=ocp.CheckpointManagerOptions(step_prefix="checkpoint"),
  ) as manager:
    manager.save(4, args=ocp.args.Composite(state=ocp.args.StandardSave(tree)))
  restored = open_folder().restore(abstract(state_of(0)))
  assert restored.data_state == {}
  jax.tree.map(np.testing.assert_array_equal, restored.state, state_of(4))


def test_a_lost_place_in_the_data_of_ours_is_damage_still(open_folder, tmp_path):
  save(open_folder(), [1])
  shutil.rmtree(tmp_path / "checkpoint_1" / "dataset")
  with pytest.raises(UserError, match="dataset/metadata is missing"):
    open_folder().restore(abstract(state_of(0)))
