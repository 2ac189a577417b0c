"""Vocabularies trained with Hugging Face's tokenizers, and SeqIO's view of any kind."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from commentree.errors import UserError
from commentree.tasks.vocabulary import vocabularies
from commentree.tasks.vocabulary.seqio_vocabulary import TokenizerVocabulary
from commentree.tasks.vocabulary.vocabularies import Tokenizer, VocabularyConfig
from commentree.tests.support.tasks.vocabulary_fixture import some_texts

MARKERS = ("<mask>", "<unu>", "<user_0>", "<user_1>", "<url>", "<startq>", "<endq>")
SIZES = {"unigram": 200, "bpe": 200, "byte_bpe": 400, "wordpiece": 300}


def train(path, kind, texts=None, size=None):
  config = VocabularyConfig(size=size or SIZES[kind], model_type=kind)
  return vocabularies.train_vocabulary(texts or some_texts(), path, config, MARKERS)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabularies")
  paths = {kind: train(folder / f"{kind}.x", kind) for kind in SIZES}
  return {k: Tokenizer(lambda p=p: p, MARKERS) for k, p in paths.items()}


@pytest.mark.parametrize("kind", SIZES)
def test_special_ids_are_those_of_t5_and_markers_follow(kind, tokenizers):
  tokenizer = tokenizers[kind]
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
  assert [tokenizer.piece_to_id(m) for m in MARKERS] == list(range(3, 10))
  assert tokenizer.mask_id == 3
  assert tokenizer.vocab_size == SIZES[kind]
  assert np.flatnonzero(~tokenizer.maskable).tolist() == list(range(10))


_TRAIN_ELSEWHERE = """
import pathlib, sys
from commentree.tasks.vocabulary import vocabularies
texts, path, kind, size, markers = (
  pathlib.Path(sys.argv[1]).read_text().split("\\n"), *sys.argv[2:5], sys.argv[5:])
config = vocabularies.VocabularyConfig(int(size), kind)
vocabularies.train_vocabulary(texts, path, config, markers)
"""


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
def test_another_process_trains_the_same_bytes(kind, tmp_path):
  # Each word once: all but ties. Hash maps are seeded anew in each process.
  texts = sorted({word for text in some_texts() for word in text.split()})
  (tmp_path / "texts").write_text("\n".join(texts))
  here = train(tmp_path / "here.json", kind, texts, SIZES[kind])
  for name in ("there.json", "elsewhere.json"):
    arguments = [tmp_path / "texts", tmp_path / name, kind, SIZES[kind], *MARKERS]
    command = [sys.executable, "-c", _TRAIN_ELSEWHERE, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / name).read_bytes() == here.read_bytes()


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece"])
@pytest.mark.parametrize(("size", "message"), [(20, "too small"), (9000, "too large")])
def test_a_size_that_cannot_be_is_refused_with_one_that_works(
  kind, size, message, tmp_path
):
  with pytest.raises(UserError, match=f"size {size}: {message}.* at") as error:
    train(tmp_path / "v.json", kind, size=size)
  assert "\n" not in str(error.value)
  words = str(error.value).split(";")[1].replace(",", " ").split()
  train(tmp_path / "v.json", kind, size=next(int(w) for w in words if w.isdigit()))


@pytest.mark.parametrize("kind", SIZES)
def test_no_text_is_said_so(kind, tmp_path):
  with pytest.raises(UserError, match="no text"):
    train(tmp_path / "v", kind, ["", " \n"])


def test_markers_are_no_words_to_train_on(tmp_path):
  texts = [f"{text} <url> {text}<url>" for text in some_texts(200)]
  for kind in ("byte_bpe", "wordpiece"):
    document = json.loads(train(tmp_path / "v.json", kind, texts).read_text())
    assert not [p for p in document["model"]["vocab"] if "url" in p and p != "<url>"]


def test_byte_fallback_is_refused_where_it_means_nothing():
  with pytest.raises(UserError, match=r"byte_fallback.*byte_bpe"):
    VocabularyConfig(model_type="byte_bpe", byte_fallback=True)


def test_the_record_goes_beside_a_tokenizer_json(tmp_path):
  path = train(tmp_path / "v.json", "byte_bpe")
  record = json.loads((tmp_path / "v.record.json").read_text())
  assert record["model_type"] == "byte_bpe"
  assert record["texts"] == 400
  assert record["fingerprint"] == Tokenizer(lambda: path).fingerprint
  with pytest.raises(UserError, match="is not a SentencePiece model or tokenizer"):
    Tokenizer(lambda: tmp_path / "v.record.json").check()


def test_an_unlike_character_is_known_to_byte_level_bpe_alone(tokenizers):
  for kind, tokenizer in tokenizers.items():
    (ids,) = tokenizer.encode_batch(["ba 漢"])
    assert (tokenizer.unk_id in ids) == (kind != "byte_bpe")


@given(st.text())
def test_byte_level_bpe_gives_any_text_back(tokenizers, text):
  text = text.encode("utf-8", "replace").decode()
  (ids,) = tokenizers["byte_bpe"].encode_batch([text])
  assert tokenizers["byte_bpe"].decode(ids.tolist()) == text


@pytest.mark.parametrize("kind", SIZES)
def test_words_come_back(kind, tokenizers):
  texts = some_texts(20, seed=4)
  for text, ids in zip(texts, tokenizers[kind].encode_batch(texts)):
    assert tokenizers[kind].decode(ids.tolist()) == text


@pytest.mark.parametrize("kind", SIZES)
def test_markers_come_back_without_the_space_before_them(kind, tokenizers):
  (ids,) = tokenizers[kind].encode_batch(["<user_0> ba ko <url> de"])
  expected = (
    "<user_0> ba ko <url> de" if kind == "wordpiece" else "<user_0> ba ko<url> de"
  )
  assert tokenizers[kind].decode(ids.tolist()) == expected


# As SeqIO knows them.


@pytest.mark.parametrize("kind", SIZES)
def test_seqio_encodes_and_decodes_alike_in_python_and_tensorflow(kind, tokenizers):
  tokenizer, vocabulary = tokenizers[kind], TokenizerVocabulary(tokenizers[kind])
  for text in ["<user_0> ba ko <url> de", "漢 bade", "", *some_texts(3, seed=8)]:
    ids = vocabulary.encode(text)
    assert ids == tokenizer.encode_batch([text])[0].tolist()
    assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
    padded = [*ids, vocabulary.eos_id, vocabulary.pad_id, vocabulary.pad_id]
    assert vocabulary.decode(padded) == tokenizer.decode(ids)
    in_tf = vocabulary.decode_tf(tf.constant([padded, padded])).numpy()
    assert [t.decode() for t in in_tf] == [tokenizer.decode(ids)] * 2
    assert (
      vocabulary.decode_tf(tf.constant(padded)).numpy().decode() == in_tf[0].decode()
    )


@pytest.mark.parametrize("kind", SIZES)
def test_seqio_vocabularies_survive_datasets_and_copies(kind, tokenizers):
  vocabulary = TokenizerVocabulary(tokenizers[kind])
  texts = some_texts(5, seed=2)
  ds = tf.data.Dataset.from_tensor_slices(texts).map(vocabulary.encode_tf)
  assert [x.tolist() for x in ds.as_numpy_iterator()] == [
    vocabulary.encode(t) for t in texts
  ]
  for copied in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
    assert copied == vocabulary
    assert copied.encode(texts[0]) == vocabulary.encode(texts[0])
  others = [TokenizerVocabulary(t) for name, t in tokenizers.items() if name != kind]
  assert all(vocabulary != other for other in others)
