"""Damage to files of datasets and vocabularies that random mutations seldom make."""

import json

import pytest

from commentree.errors import UserError

from ..fuzz.surfaces import SURFACES


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_infinite_is_one_line(tmp_path, number):
  surface = SURFACES["built_dataset_dataset_info_json"]
  for name in ("seeds", "check"):
    (tmp_path / name).mkdir()
  info = json.loads(surface.seeds(tmp_path / "seeds")[0])
  info["splits"][0]["shardLengths"] = ["N"]
  text = json.dumps(info).replace('"N"', number)
  with pytest.raises(UserError, match="not as TFDS writes it"):
    surface.check(tmp_path / "check")(text.encode())


def test_a_vocabulary_without_the_unknown_token_it_names_is_refused(tmp_path):
  surface = SURFACES["tokenizer_json_wordpiece"]
  for name in ("seeds", "check"):
    (tmp_path / name).mkdir()
  document = json.loads(surface.seeds(tmp_path / "seeds")[0])
  document["model"]["unk_token"] = "[NOWHERE]"
  with pytest.raises(UserError, match=r"is not a SentencePiece model or tokenizer\.j"):
    surface.check(tmp_path / "check")(json.dumps(document).encode())
