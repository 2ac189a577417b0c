"""The image's recipe copies what is there, and what it installs exists."""

import re
from pathlib import Path

import commentree

ROOT = Path(commentree.__file__).parent
RECIPE = (ROOT / "launch/cloud/Dockerfile").read_text()


def test_what_it_copies_first_is_enough_to_read_the_requirements():
  copied = {
    name
    for line in re.findall(r"^COPY (.*) \S+$", RECIPE, re.MULTILINE)
    for name in line.split()
  } - {"."}
  assert all((ROOT / name).is_file() for name in copied)
  read = set(re.findall(r'"([\w/]+\.\w+)"', (ROOT / "setup.py").read_text()))
  there = {name for name in read if (ROOT / name).is_file()}
  assert there - {"py.typed", "tasks/subtrees/discourse_markers.txt"} <= copied


def test_its_extras_are_of_setup_py():
  extras = re.search(r"^ARG EXTRAS=(.*)$", RECIPE, re.MULTILINE)[1].split(",")
  for extra in [*extras, "cuda"]:
    assert f'"{extra}": ' in (ROOT / "setup.py").read_text()
