"""What people see of the package where they find it."""

import pathlib
import re
import subprocess
import sys

import commentree

ROOT = pathlib.Path(commentree.__file__).parent


def test_the_description_names_files_in_place_of_links_to_them():
  described = subprocess.run(
    [sys.executable, "setup.py", "--quiet", "--long-description"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert "`docs/data.md`" in described
  targets = re.findall(r"\]\(([^)]*)\)", described)
  assert all(target.startswith("https://") for target in targets)
