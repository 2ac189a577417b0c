"""Arrays of Hugging Face find their places whatever name of theirs a file has."""

from __future__ import annotations

import numpy as np
import pytest

from commentree.errors import UserError
from commentree.tests.support.training.warm_starts import started
from commentree.tests.support.training.warm_starts import (
  written_by_hugging_face as written,
)

VOCAB = 30
HEADS = {
  "roberta": ("roberta.", "lm_head", written.ROBERTA),
  "bert": ("bert.", "cls.predictions", written.BERT),
}


def bert(kind):
  body, head, config = HEADS[kind]
  return written.bert_arrays(config, body, head=kind), config, f"{body}embeddings", head


def renamed(arrays, **names):
  return {names.get(name, name): array for name, array in arrays.items()}


def fresh(model):
  """Returns the first parts of the names of what no array is for."""
  names = (line.parameter for line in model.plan.of("fresh"))
  return {".".join(n.split(".")[:2]) for n in names if "encoder_decoder" not in n}


@pytest.mark.parametrize("kind", HEADS)
def test_tied_weights_that_are_kept_under_the_heads_names_are_found(tmp_path, kind):
  arrays, config, embeddings, head = bert(kind)
  table, bias = arrays[f"{embeddings}.word_embeddings.weight"], arrays[f"{head}.bias"]
  names = {
    f"{embeddings}.word_embeddings.weight": f"{head}.decoder.weight",
    f"{head}.bias": f"{head}.decoder.bias",
  }
  folder = written.write(tmp_path, renamed(arrays, **names), config)
  ours = started.start(folder, vocab_size=VOCAB)
  np.testing.assert_array_equal(ours.named["token_embedder.embedding"], table)
  np.testing.assert_array_equal(ours.named["decoder.logits_bias"], bias)
  assert ours.plan.unused == ()


def test_the_tied_table_of_t5_is_found_under_the_name_of_its_logits(tmp_path):
  arrays = written.t5_arrays(written.T5_1_0)
  kept = renamed(arrays, **{"shared.weight": "lm_head.weight"})
  named = started.start(
    written.write(tmp_path, kept, written.T5_1_0),
    vocab_size=VOCAB,
    logits_via_embedding=False,
  ).named
  table = arrays["shared.weight"]
  np.testing.assert_array_equal(named["token_embedder.embedding"], table)
  np.testing.assert_allclose(named["decoder.logits_dense.kernel"], table.T / 4)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.net."])
@pytest.mark.parametrize("kind", ["roberta", "bert", "t5"])
def test_what_wrappers_put_in_front_of_all_names_is_nothing(tmp_path, kind, prefix):
  if kind == "t5":
    arrays, config = written.t5_arrays(written.T5), written.T5
  else:
    arrays, config, *_ = bert(kind)
  plain = started.start(
    written.write(tmp_path / "plain", arrays, config), vocab_size=VOCAB
  )
  wrapped = {prefix + name: array for name, array in arrays.items()}
  ours = started.start(
    written.write(tmp_path / "wrapped", wrapped, config), vocab_size=VOCAB
  )
  assert ours.plan.unused == ()
  assert (
    fresh(ours)
    == fresh(plain)
    <= {
      "ancestors.null_vector",
      "decoder.layers_0",
      "decoder.layers_1",
    }
  )
  for name, values in plain.named.items():
    np.testing.assert_array_equal(ours.named[name], values)


@pytest.mark.parametrize("kind", ["roberta", "t5"])
def test_more_rows_than_the_vocabulary_has_are_cut_and_that_is_told(tmp_path, kind):
  if kind == "t5":
    arrays, config = written.t5_arrays(written.T5), written.T5
    logits, there = "decoder.logits_dense.kernel", arrays["lm_head.weight"].T[:, :-7]
    table = arrays["shared.weight"]
  else:
    arrays, config, embeddings, head = bert(kind)
    logits, there = "decoder.logits_bias", arrays[f"{head}.bias"][:-7]
    table = arrays[f"{embeddings}.word_embeddings.weight"]
  folder = written.write(tmp_path, arrays, config)
  ours = started.start(folder, vocab_size=VOCAB - 7)
  np.testing.assert_array_equal(ours.named["token_embedder.embedding"], table[:-7])
  np.testing.assert_array_equal(ours.named[logits], there)
  assert sum("cut from 30" in line for line in ours.plan.report()) == 2


def test_a_users_rule_adds_to_those_that_a_model_has(tmp_path):
  arrays, config, embeddings, head = bert("roberta")
  table = arrays.pop(f"{embeddings}.word_embeddings.weight")
  arrays["my_table"] = table
  folder = written.write(tmp_path, arrays, config)
  own = (r"token_embedder\.embedding", "my_table")
  ours = started.start(folder, [own], vocab_size=VOCAB)
  np.testing.assert_array_equal(ours.named["token_embedder.embedding"], table)
  there = arrays[f"{head}.bias"]
  np.testing.assert_array_equal(ours.named["decoder.logits_bias"], there)
  assert ours.plan.unused == ()


def test_of_an_unknown_model_nothing_is_fresh_unless_a_rule_says_so(tmp_path):
  arrays = {"my_table": np.zeros((VOCAB, 16), np.float32)}
  folder = written.write(tmp_path, arrays, written.ROBERTA)
  own = (r"token_embedder\.embedding", "my_table")
  with pytest.raises(UserError, match=r"encoder\.layers_\{0-1\}.*: is not there"):
    started.start(folder, [own], vocab_size=VOCAB)
  ours = started.start(folder, [own, (r".*", None)], vocab_size=VOCAB)
  assert len(ours.plan.of("loaded")) == 1


@pytest.mark.parametrize("config", [written.ROBERTA, written.BERT])
def test_null_in_a_config_is_as_if_nothing_were_said(tmp_path, config):
  said = dict(config)
  for name in ("pad_token_id", "hidden_act", "position_embedding_type"):
    said[name] = None
  folder = written.write(tmp_path, {}, said)
  expected = started.settings_of(written.write(tmp_path / "all", {}, config))
  assert started.settings_of(folder) == expected
