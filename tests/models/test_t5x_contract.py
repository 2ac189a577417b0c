"""What T5X asks of a model and of an optimizer, written out; T5X is not imported.

Written down from T5X's trainer, evaluation and inference, which run our model by
`gin/t5x/*.gin`: here stands what they call, with which arguments, and what they do with
what comes back.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from clu import metrics as clu_metrics
from flax.linen import partitioning as flax_partitioning
from jax.sharding import PartitionSpec

from commentree.errors import UserError
from commentree.launch import t5x_model
from commentree.launch.settings import gin_cli
from commentree.models import layers
from commentree.models.model import CommentTreeModel
from commentree.tasks.config.generated import GeneratedTreesConfig
from commentree.tasks.config.preprocessing import MaskingConfig
from commentree.tasks.forests.forest_layout import ForestLayout
from commentree.tasks.seqio_tasks import registered, registry
from commentree.tasks.seqio_tasks.feature_converters import (
  CommentForestFeatureConverter,
)
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.tests.support.models import labelled, small_models
from commentree.training.config import DEFAULT_AXIS_RULES
from commentree.training.optim import optimizers
from commentree.training.optim.optimizer_config import OptimizerConfig
from commentree.training.optim.t5x_optimizer import OptaxOptimizer

assert registered  # Registers the task of generated trees.
TASK = "commentree_generated"


# ---- The model ---------------------------------------------------------------------


HEADS = {"masked_lm": {}, **labelled.HEADS}


@pytest.fixture(scope="module", params=HEADS)
def t5x(request, make, packed):
  """Calls the model as T5X does, with each of its heads."""
  model, params = make(**HEADS[request.param])
  batch = packed.batch
  if request.param != "masked_lm":
    batch = labelled.for_head(model.config, batch)
  return model, params, {name: jnp.asarray(values) for name, values in batch.items()}


@pytest.mark.parametrize("head", HEADS)
def test_initial_variables_come_by_keyword_from_a_bound_method(head, make, packed):
  init = make(**HEADS[head])[0].get_initial_variables
  assert inspect.ismethod(init)
  for types in (None, {name: x.dtype for name, x in packed.batch.items()}):
    variables = jax.eval_shape(
      lambda types=types: init(
        rng=jax.random.key(0), input_shapes=packed.shapes, input_types=types
      )
    )
    assert set(variables) == {"params", "params_axes"}
    # What T5X makes of the axes: one name for each parameter, of the same path.
    names = flax_partitioning.get_axis_names(variables["params_axes"])
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(names)]
    assert paths == [
      path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
    ]


def test_losses_have_metrics_that_clu_writes(t5x):
  model, params, batch = t5x
  for arguments in (
    (model.loss_fn, params, batch, jax.random.key(1)),
    (model.loss_fn, params, batch, jax.random.key(1), {}),
    (model.eval_fn, params, batch),
    (model.eval_fn, params, batch, {}),
  ):
    outcome = jax.eval_shape(*arguments)
    assert isinstance(outcome, tuple)
    loss, metrics = outcome
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert isinstance(metrics, Mapping)
    assert metrics
    assert all(isinstance(m, clu_metrics.Metric) for m in metrics.values())


def test_the_loss_has_a_gradient_by_its_first_argument_with_metrics_aside(t5x):
  model, params, batch = t5x
  gradient = jax.grad(model.loss_fn, argnums=0, has_aux=True)
  grads, _ = jax.eval_shape(gradient, params, batch, jax.random.key(1))
  assert jax.tree.structure(grads) == jax.tree.structure(params)


@pytest.mark.parametrize(
  ("name", "takes_rng", "with_aux"),
  [
    ("predict_batch", True, False),
    ("predict_batch_with_aux", True, True),
    ("score_batch", False, False),
  ],
)
def test_inference_is_called_by_what_it_has_names_for(t5x, name, takes_rng, with_aux):
  model, params, batch = t5x
  step = getattr(model, name)
  names = inspect.signature(step).parameters
  assert ("rng" in names) == takes_rng
  arguments = [params, batch, *([jax.random.key(0)] if takes_rng else [])]
  result = jax.eval_shape(step, *arguments)
  if with_aux:
    result, aux = result
    assert isinstance(aux, Mapping)
    leaves = [result, *jax.tree.leaves(aux)]
  else:
    leaves = [result]
  size = len(batch["decoder_input_tokens"])
  assert all(leaf.shape[0] == size for leaf in leaves)


def test_axes_of_every_head_are_known_to_the_rules_that_t5x_is_given():
  for changes in labelled.HEADS.values():
    t5x_model.check_axes(
      CommentTreeModel(dataclasses.replace(small_models.CONFIG, **changes))
    )


def test_what_else_is_read_is_there():
  model = CommentTreeModel(
    small_models.CONFIG, input_vocabulary="in", feature_converter_cls=dict
  )
  assert model.FEATURE_CONVERTER_CLS(pack=True, use_custom_packing_ops=False)
  assert model.FEATURE_CONVERTER_CLS(pack=False) == {"pack": False}
  assert (model.input_vocabulary, model.output_vocabulary) == ("in", "in")
  assert isinstance(model.module.scan_layers, bool)


def test_every_feature_has_the_batch_first(packed):
  assert {len(values) for values in packed.batch.values()} == {3}


# ---- The optimizer -----------------------------------------------------------------

PARAMS = {
  "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)},
  "norm": {"scale": jnp.ones(4)},
}
AXES = {
  "dense": {"kernel": PartitionSpec("embed", "mlp"), "bias": PartitionSpec("mlp")},
  "norm": {"scale": PartitionSpec("embed")},
}
OPTIMIZERS = ("adamw", "adafactor", "sgd")


def config(name):
  kwargs = {"min_dim_size_to_factor": 2} if name == "adafactor" else {}
  return OptimizerConfig(name=name, weight_decay=0.1, kwargs=kwargs)


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request):
  return OptaxOptimizer(config(request.param)).create(PARAMS)


def gradient():
  return jax.tree.map(
    lambda p: jnp.cos(p + jnp.arange(p.size).reshape(p.shape)), PARAMS
  )


def test_an_optimizer_is_a_tree_of_step_states_and_target(optimizer):
  assert int(optimizer.state.step) == 0
  assert optimizer.target == PARAMS
  assert optimizer.state.param_states
  # Passes through jit, as a part of T5X's training state.
  again = jax.jit(lambda x: x)(optimizer)
  assert jax.tree.structure(again) == jax.tree.structure(optimizer)
  assert optimizer.replace(target=None).target is None


def test_its_state_dict_is_plain_and_without_what_t5x_loses(optimizer):
  def check(tree):
    for value in tree.values():
      if isinstance(value, dict):
        assert value
        check(value)
      else:
        assert isinstance(value, jax.Array)

  tree = optimizer.state_dict()
  assert set(tree) == {"target", "state"}
  assert set(tree["state"]) == {"step", "param_states"}
  check({"target": tree["target"], "step": tree["state"]["step"]})
  check(tree["state"]["param_states"])


def test_a_state_dict_restores_what_gave_it(optimizer):
  stepped = optimizer.apply_gradient(gradient(), learning_rate=0.1)
  restored = optimizer.restore_state(stepped.state_dict())
  assert jax.tree.structure(restored) == jax.tree.structure(stepped)
  jax.tree.map(np.testing.assert_array_equal, restored, stepped)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_that_of_our_trainer_at_the_same_learning_rate(name):
  ours = optimizers.make_optimizer(config(name), lambda step: 0.1 / (1 + step))
  state, params = ours.init(PARAMS), PARAMS
  optimizer = OptaxOptimizer(config(name)).create(PARAMS)
  for step in range(3):
    updates, state = ours.update(gradient(), state, params)
    params = jax.tree.map(jnp.add, params, updates)
    optimizer = optimizer.apply_gradient(gradient(), learning_rate=0.1 / (1 + step))
  assert int(optimizer.state.step) == 3
  assert jax.tree.structure(optimizer.state.param_states) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_allclose, optimizer.target, params)
  jax.tree.map(np.testing.assert_allclose, optimizer.state.param_states, state)


@pytest.mark.parametrize("freeze", [dict, flax.core.freeze])
def test_adafactor_under_t5x_takes_each_stacked_layer_by_itself(freeze):
  """As T5X's own does by its factor rule for the axis `layers`."""
  kernels = jnp.cos(jnp.arange(72.0)).reshape(3, 4, 6) * jnp.array(
    [1.0, 9.0, 0.1]
  ).reshape(3, 1, 1)

  def after(layers):
    made = OptaxOptimizer(config("adafactor")).create(freeze({"decoder": layers}))
    grads = jax.tree.map(jnp.sin, made.target)
    return made.apply_gradient(grads, learning_rate=0.1).target["decoder"]

  stacked = after({"layers": {"kernel": kernels}})["layers"]["kernel"]
  apart = after({f"layers_{i}": {"kernel": kernels[i]} for i in range(3)})
  for i in range(3):
    np.testing.assert_allclose(stacked[i], apart[f"layers_{i}"]["kernel"], rtol=1e-5)


def test_frozen_parameters_are_taken_as_well():
  made = OptaxOptimizer(config("adamw")).create(flax.core.freeze(PARAMS))
  assert made.target == PARAMS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_statistics_lie_as_their_parameters_do(name):
  definition = OptaxOptimizer(config(name))
  optimizer = definition.create(PARAMS)
  axes = definition.derive_logical_axes(optimizer, AXES)
  assert axes.state.step is None
  assert axes.target == AXES
  kernels = {
    jax.tree_util.keystr(path): (leaf.shape, spec)
    for (path, leaf), spec in zip(
      jax.tree_util.tree_leaves_with_path(optimizer.state.param_states),
      jax.tree.leaves(
        axes.state.param_states,
        is_leaf=lambda x: x is None or isinstance(x, PartitionSpec),
      ),
    )
    if "kernel" in str(path)
  }
  expected = {
    (4, 6): PartitionSpec("embed", "mlp"),
    (4,): PartitionSpec("embed"),
    (6,): PartitionSpec("mlp"),
    (1,): None,
  }
  assert bool(kernels) == (name != "sgd")
  for shape, spec in kernels.values():
    assert spec == expected[shape]


# ---- What the gin files bind -------------------------------------------------------


def test_the_model_of_the_gin_files_has_the_tasks_vocabulary_and_layout():
  layout = ForestLayout(decoder_rows=8)
  optimizer = OptaxOptimizer()
  # Of a name of its own: a run in this process may have given TASK other settings.
  name = "vocabulary_and_layout"
  task = registry.add_generated_task(name)
  model = t5x_model.comment_tree_model(name, small_models.CONFIG, optimizer, layout)
  assert model.input_vocabulary == TokenizerVocabulary(task.tokenizer)
  assert model.optimizer_def is optimizer
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  assert isinstance(converter, CommentForestFeatureConverter)
  assert converter.layout is layout


@pytest.mark.parametrize("axes", [("embed",), ("embde", "mlp"), ("embed",) * 3])
def test_axes_of_which_t5x_would_say_nothing_are_refused_by_name(axes, monkeypatch):
  def parameter(name, init, shape, names):
    declared = axes if shape == (16, 24) else names
    return flax_partitioning.param_with_axes(name, init, shape, axes=declared)

  monkeypatch.setattr(layers, "parameter", parameter)
  model = CommentTreeModel(small_models.CONFIG)
  with pytest.raises((UserError, ValueError), match=r"wi_0\.kernel|dim"):
    t5x_model.check_axes(model)


def test_rules_are_added_for_all_axes_that_t5x_does_not_know():
  added = dict(t5x_model.additional_axis_rules())
  assert set(added) | t5x_model._T5X_AXES == {axis for axis, _ in DEFAULT_AXIS_RULES}
  assert set(added.values()) == {None}


def test_the_evaluator_that_measures_losses_is_as_t5x_wants_one():
  # Of a name of its own: a run in this process may have given TASK other settings.
  task = "few_trees_to_evaluate"
  trees = GeneratedTreesConfig(num_train_trees=8, num_validation_trees=8)
  registry.add_generated_task(task, trees)
  evaluator = t5x_model.LossesOnly(
    mixture_or_task_name=task,
    feature_converter=CommentForestFeatureConverter(pack=False),
    eval_split="validation",
    use_cached=False,
    seed=0,
    sequence_length={"encoder": 32, "decoder": 32},
    use_memory_cache=True,
    log_dir="/tmp",
  )
  assert [found.name for found in evaluator.eval_tasks] == [task]
  shapes = evaluator.model_feature_shapes
  assert set(shapes) == set(CommentForestFeatureConverter.MODEL_FEATURES)
  metrics, _ = evaluator.evaluate(compute_metrics=True, step=1, predict_fn=None)
  assert metrics.result() == {}
  evaluator.close()


def test_the_gin_files_bind_names_that_are_there():
  """Each `from commentree… import …` and each binding of what it imports."""
  folder = gin_cli.GIN_ROOT / "t5x"
  text = "\n".join(path.read_text() for path in sorted(folder.glob("*.gin")))
  modules = {}
  for package, name, alias in re.findall(
    r"^from (commentree[\w.]*) import (\w+)(?: as (\w+))?$", text, re.MULTILINE
  ):
    module = __import__(f"{package}.{name}", fromlist=[name])
    modules[alias or name] = module
  assert {"t5x_model", "t5x_optimizer", "training_config"} <= modules.keys()
  # As one binding a line: `module.name:` with indented parameters below it.
  lines, owner = [], ""
  for line in text.splitlines():
    if re.fullmatch(r"[\w./]+:", line):
      owner = line[:-1]
    elif line.startswith("  "):
      lines.append(f"{owner}.{line.strip()}")
    else:
      lines.append(line)
  bindings = set(re.findall(r"^(\w+)\.(\w+)\.(\w+) =", "\n".join(lines), re.MULTILINE))
  ours = {binding for binding in bindings if binding[0] in modules}
  assert len(ours) >= 10
  for module, name, parameter in ours:
    signature = inspect.signature(getattr(modules[module], name))
    assert parameter in signature.parameters, (module, name, parameter)
  for module, name in set(re.findall(r"@(\w+)\.(\w+)", text)):
    assert module not in modules or callable(getattr(modules[module], name))


def test_without_packing_each_subtree_has_a_forest_of_its_own():
  # Of a name of its own: a run in this process may have given TASK other settings.
  task = registry.add_generated_task("one_subtree_a_forest")
  lengths = {"encoder": 32, "decoder": 32}
  subtrees = task.get_dataset(
    sequence_length=lengths, split="validation", shuffle=False, num_epochs=1
  ).take(12)
  layout = ForestLayout(decoder_rows=64)
  apart = CommentForestFeatureConverter(pack=False, layout=layout)(subtrees, lengths)
  together = CommentForestFeatureConverter(pack=True, layout=layout)(subtrees, lengths)
  targets = [int(f["decoder_segment_ids"].max()) for f in apart.as_numpy_iterator()]
  expected = [
    int(np.count_nonzero(subtree["is_target"]))
    for subtree in subtrees.as_numpy_iterator()
  ]
  assert targets == expected
  assert len(list(together.as_numpy_iterator())) < 12


def test_a_subtree_with_more_masks_than_a_forest_has_room_for_is_told():
  masking = MaskingConfig(rate=0.95, mask_share=1.0, random_share=0.0)
  task = registry.add_generated_task(
    "heavily_masked",
    GeneratedTreesConfig(max_filler_words=40),
    registry.PreprocessingConfig(masking=masking),
  )
  lengths = {"encoder": 32, "decoder": 32}
  subtrees = task.get_dataset(
    sequence_length=lengths, split="validation", shuffle=False, num_epochs=1
  )
  forests = CommentForestFeatureConverter(pack=False)(subtrees, lengths)
  with pytest.raises(tf.errors.UnknownError, match="masked_per_group"):
    list(forests.as_numpy_iterator())
