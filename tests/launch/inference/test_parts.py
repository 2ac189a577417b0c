"""The notes of outputs beside them may hold anything: they are read or refused."""

import pytest
from etils import epath

from commentree.errors import UserError
from commentree.launch.inference.parts import Parts

TEXTS = ("[]", "null", "3", "{", "", '{"settings": []}', "[" * 100_000)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["out.jsonl.record.json", "out.jsonl.parts"])
def test_a_damaged_note_of_an_output_is_one_line_that_names_it(tmp_path, name, text):
  parts = Parts(epath.Path(tmp_path) / "out.jsonl", ".jsonl", {"seed": 1}, print)
  if name.endswith(".parts"):
    note = tmp_path / name / "settings.json"
    note.parent.mkdir()
  else:
    note = tmp_path / name
    parts.output.write_text("answers")
  note.write_text(text)
  with pytest.raises(UserError) as error:
    parts.begin()
  said = str(error.value)
  assert "\n" not in said
  if text.startswith("{") and text.endswith("}") and name.endswith(".parts"):
    assert "was made with" in said
  else:
    assert said.startswith(f"{note}: is damaged (")
