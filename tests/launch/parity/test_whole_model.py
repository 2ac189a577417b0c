"""The model that `convert --whole_model` writes has our logits in `transformers`.

These run where the extra `parity` is installed.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import commentree
from commentree.launch.exporting import runner
from commentree.launch.main import main
from commentree.launch.settings import model_sizes, run_folder
from commentree.models.batch import FEATURE_AXES
from commentree.models.model import CommentTreeModel
from commentree.tasks.subtrees import splitting
from commentree.tests.support.launch import made_runs, wordpiece
from commentree.training.warm_starts import safetensors_writing, sources

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip(
  "transformers", reason="the extra `parity` is not installed"
)

ROBERTA = {**wordpiece.ROBERTA, "ModelConfig.ancestor_positions": "relative_bias"}
CASES = {
  "t5": {
    "ModelConfig.ancestor_positions": "relative_bias",
    "ModelConfig.ancestor_pointer": True,
  },
  "t5_1_0": {
    "ModelConfig.mlp_activations": ("relu",),
    "ModelConfig.logits_via_embedding": True,
    "ModelConfig.scan_layers": True,
    "ModelConfig.ancestor_positions": "distance",
    "ModelConfig.max_ancestor_distance": 2,
    "ModelConfig.pooling": "max",
    "ModelConfig.vectors_per_comment": 3,
  },
  "roberta": {**ROBERTA, "ModelConfig.ancestor_pointer": True},
  "bert": {
    **ROBERTA,
    "ModelConfig.position_offset": 0,
    "ModelConfig.type_vocab_size": 2,
    "ModelConfig.norm_before_ancestors": True,
    "ModelConfig.normalize_pooled_vectors": True,
    "ModelConfig.pooling": "attention",
    "ModelConfig.vectors_per_comment": 2,
    "ModelConfig.scan_layers": True,
  },
  "several_means": {
    "ModelConfig.ancestor_positions": "none",
    "ModelConfig.vectors_per_comment": 4,
    "ModelConfig.reply_matching_weight": 0.1,
  },
  "first": {
    **ROBERTA,
    "ModelConfig.type_vocab_size": 0,
    "ModelConfig.pooling": "first",
    "ModelConfig.vectors_per_comment": 2,
  },
}
# Deeper than `MAX_ANCESTORS`, 4; the third comment has no text left.
PARENTS = [-1, 0, 1, 2, 3, 4, 5, 1]
LENGTHS = [24, 7, 0, 3, 24, 1, 6, 9]


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
  """Modeling files are copied to a folder at home, to be imported."""
  module = "transformers.dynamic_module_utils"
  monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
  monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture(autouse=True)
def no_gradients():
  with torch.no_grad():
    yield


def our_logits(run, comments, mask):
  """Returns logits of what is predicted, by comment and place, and their losses."""
  found = run_folder.load(str(run))
  source = safetensors_writing.parameters_of(sources.open_source(f"{run}/checkpoint_1"))
  arrays = {
    name: source.read(name, tuple(slice(0, n) for n in spec.shape))
    for name, spec in source.arrays.items()
  }
  params = {}
  for name, values in arrays.items():
    *parents, leaf = name.split(".")
    inner = params
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[leaf] = values
  size = len(arrays["token_embedder.embedding"])
  config = model_sizes.with_sizes(found.model, found.data.preprocessing, size)
  sizes = {"B": 1, "R": 9, "L": 24, "M": 24, "E": 8, "T": 8, "A": 4}
  forest = {
    name: np.zeros([sizes[axis] for axis in axes], np.int32)
    for name, axes in FEATURE_AXES.items()
  }
  forest["encoder_slot_depths"] -= 1
  forest, places = runner.fill_forest(forest, "fill", {"mask_id": mask}, comments)
  forest["decoder_loss_weights"] = np.ones((1, 9, 24), np.float32)
  logits = np.asarray(CommentTreeModel(config).logits(params, forest))
  return {place: logits[0, row, column] for place, (row, column) in places.items()}


def padded(rows):
  length = max(map(len, rows))
  ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
  mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
  return ids, mask


@pytest.mark.parametrize("case", CASES)
def test_the_whole_model_has_our_logits(tmp_path, case):
  layers = {f"ModelConfig.num_{side}_layers": 2 for side in ("encoder", "decoder")}
  run = made_runs.make(tmp_path, **layers, **CASES[case])
  folder = tmp_path / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(folder)]) == 0
  model, loading = transformers.AutoModelForMaskedLM.from_pretrained(
    folder, trust_remote_code=True, output_loading_info=True
  )
  assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
  model.eval()
  rng = np.random.default_rng(3)
  tokens = [rng.integers(12, 40, length).tolist() for length in LENGTHS]
  comments = [
    {"tokens": ids, "parent": parent, "predict": [*range(0, len(ids), 2)]}
    for ids, parent in zip(tokens, PARENTS)
  ]
  mask = model.config.mask_token_id
  ours = our_logits(run, comments, mask)
  assert len(ours) == sum((length + 1) // 2 for length in LENGTHS)

  modeling = importlib.import_module(type(model).__module__)
  ancestors, distances = modeling.ancestors_of(PARENTS, model.config.max_ancestors)
  seen = splitting.visible_ancestors(np.array(PARENTS), 4)
  np.testing.assert_array_equal(ancestors.numpy(), seen)
  reads = [[mask if i % 2 == 0 else t for i, t in enumerate(ids)] for ids in tokens]
  targets = [number for number, ids in enumerate(tokens) if ids]
  ids, attention_mask = padded([reads[number] for number in targets])
  context_ids, context_mask = padded(tokens)
  given = {
    "input_ids": ids,
    "attention_mask": attention_mask,
    "context_input_ids": context_ids,
    "context_attention_mask": context_mask,
    "ancestors": ancestors[targets],
    "ancestor_distances": distances[targets],
  }
  labels, _ = padded([tokens[number] for number in targets])
  labels = labels.where((ids == mask) & (attention_mask > 0), -100)
  theirs = model(**given, labels=labels)
  rows = [
    (theirs.logits[targets.index(number), place].numpy(), values)
    for (number, place), values in ours.items()
  ]
  found, expected = (np.stack(each) for each in zip(*rows))
  largest = np.abs(expected).max()
  difference = np.abs(found - expected).max() / largest
  print(f"{case}: largest logit {largest:.2f}, largest difference {difference:.1e}")
  assert largest > 0.1
  assert difference < 1e-5

  log_probs = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
  answers = [tokens[number][place] for number, place in ours]
  loss = -np.mean([log_probs[row, answer] for row, answer in enumerate(answers)])
  assert float(theirs.loss) == pytest.approx(loss, rel=1e-5)
  alone = model(ids, attention_mask).logits
  shown = torch.tensor([PARENTS[number] >= 0 for number in targets])
  change = (alone - theirs.logits).abs().amax((1, 2))
  assert (change[shown] > 1e-3).all()
  assert (change[~shown] < 1e-6).all()


def test_with_its_tokenizer_it_fills_a_mask_as_the_run_does(tmp_path):
  vocabulary = wordpiece.make(tmp_path)
  settings = {**CASES["roberta"], "VOCABULARY": vocabulary}
  run = made_runs.make(tmp_path, **settings)
  folder = tmp_path / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(folder)]) == 0
  tree = {
    "id": "t",
    "title": "cats or dogs",
    "author": "ann",
    "comments": [
      {"id": "a", "parent_id": "t", "author": "bob", "body": "dogs of course"},
      {"id": "b", "parent_id": "a", "author": "ann", "body": "i prefer <mask>"},
    ],
  }
  (*_, answer) = commentree.load(run).fill(tree)
  model = transformers.AutoModelForMaskedLM.from_pretrained(
    folder, trust_remote_code=True
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  thread = ["<user_0> cats or dogs", "<user_1> dogs of course"]
  above = tokenizer(thread, padding=True, return_tensors="pt")
  reply = tokenizer(f"<user_0> i prefer {tokenizer.mask_token}", return_tensors="pt")
  logits = model(
    **reply,
    context_input_ids=above["input_ids"],
    context_attention_mask=above["attention_mask"],
    ancestors=torch.tensor([[1, 0]]),
  ).logits
  masked = reply["input_ids"] == tokenizer.mask_token_id
  best = logits.softmax(-1)[masked][0].topk(5)
  (mask,) = answer["masks"]
  for candidate, token, probability in zip(
    mask["candidates"], tokenizer.convert_ids_to_tokens(best.indices), best.values
  ):
    assert candidate["token"] == token
    assert candidate["probability"] == pytest.approx(float(probability), rel=1e-4)


def test_a_model_saved_there_is_the_same_again(tmp_path):
  run = made_runs.make(tmp_path, **CASES["t5"])
  folder = tmp_path / "whole"
  command = ["convert", "--to=hugging_face", "--whole_model", f"{run}/checkpoint_1"]
  assert main([*command, str(folder)]) == 0
  load = transformers.AutoModel.from_pretrained
  model = load(folder, trust_remote_code=True)
  model.save_pretrained(tmp_path / "again")
  again = load(tmp_path / "again", trust_remote_code=True)
  ids = torch.tensor([[5, 6, 7]])
  given = {"context_input_ids": ids, "ancestors": torch.tensor([[0]])}
  assert torch.equal(model(ids, **given).logits, again(ids, **given).logits)
