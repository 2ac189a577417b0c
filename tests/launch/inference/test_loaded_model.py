"""A run as a model in Python: what it says of itself, and of what it cannot take."""

import subprocess
import sys

import numpy as np
import pytest

import commentree
from commentree.errors import UserError
from commentree.tests.support.launch import made_runs


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  return made_runs.make(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (None, "None is no tree: give a text"),
    (3, "3 is no tree"),
    ([None], "None is no tree"),
    (b"bytes", "b'bytes' is no tree"),
    ("", "tree 'text': no comment is left"),
    (" \n", "tree 'text': no comment is left"),
    ({}, "tree None: no comment is left"),
    ({"id": "t", "title": "a", "comments": "none"}, "tree 't': no comment is left"),
    ([{"id": "t", "title": "a"}, ["b"]], "['b'] is no tree"),
  ],
)
def test_what_is_no_tree_is_one_line_in_python(model, given, said):
  with pytest.raises(UserError) as error:
    model.fill(given)
  assert said in str(error.value)
  assert "\n" not in str(error.value)


def test_texts_are_encoded_as_sentence_transformers_does(model):
  texts = ["two words", "", "three more words", "[deleted]"]
  found = model.encode(texts)
  assert found.shape == (4, model.run.config.model.emb_dim)
  assert np.isnan(found[[1, 3]]).all()
  np.testing.assert_allclose(
    found[2], np.mean(model.embed(texts[2])[0]["vectors"], axis=0), rtol=1e-6
  )
  np.testing.assert_allclose(model.encode(texts[2]), found[2], rtol=1e-5)
  of_length_1 = model.encode(texts, normalize_embeddings=True)
  np.testing.assert_allclose(
    of_length_1[0], found[0] / np.linalg.norm(found[0]), rtol=1e-6
  )
  assert model.encode([]).shape == (0, found.shape[1])
  np.testing.assert_array_equal(model.encode(np.array(texts)), found)
  np.testing.assert_array_equal(model.encode(text for text in texts), found)
  for odd in ([3], 3, None, b"3", {"3": "words"}, np.array("3")):
    with pytest.raises(UserError, match="is no text: encode takes texts"):
      model.encode(odd)


def test_a_condition_that_there_is_not_is_one_line_in_python(model):
  with pytest.raises(UserError, match="ancestors = 'all': must be one of 'true'"):
    model.fill("<mask>", ancestors="all")


def test_a_model_says_what_it_is(model, model_dir):
  path = model_dir / "checkpoint_1"
  assert repr(model) == f"<commentree model {path} (mlm): fill, embed, rank, score>"


def test_a_model_gives_its_network_and_parameters(model):
  config, table_VD = model.model.config, model.params["token_embedder"]["embedding"]
  assert table_VD.shape == (config.vocab_size, config.emb_dim)


def test_a_folder_that_is_none_is_one_line_in_python(tmp_path):
  with pytest.raises(UserError, match="give the folder of a run"):
    commentree.load(None)
  with pytest.raises(UserError, match=r"holds no config\.gin"):
    commentree.load(tmp_path)
  with pytest.raises(UserError, match="https:// is not supported"):
    commentree.load("https://somewhere/run")


def test_importing_the_package_loads_nothing_heavy():
  code = "import sys, commentree; print({'jax', 'numpy', 'gin'} & set(sys.modules))"
  done = subprocess.run(
    [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "set()\n"
