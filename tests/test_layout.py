"""Folders are layers: who imports whom has one direction, and no folder outgrows it."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("models", "tasks", "training", "launch")
# What a folder may import besides itself and the modules at the top.
MAY_IMPORT = {
  "models": set(),
  "tasks": set(),
  "training": {"models"},
  "launch": {"models", "tasks", "training"},
}
MOST_FILES, MOST_LINES = 13, 500  # launch/commands has a file for each verb


def modules():
  """Files by the names of their modules, without `commentree.`."""
  files = [path for path in ROOT.glob("*.py") if path.name != "setup.py"]
  for folder in FOLDERS:
    files += (ROOT / folder).rglob("*.py")
  found = {}
  for path in files:
    parts = path.relative_to(ROOT).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


MODULES = modules()


def imports(name):
  """Modules of ours that a module imports anywhere, for types alone too."""
  found = set()
  for node in ast.walk(ast.parse(MODULES[name].read_text())):
    if not isinstance(node, ast.ImportFrom):
      continue
    assert node.level == 0, f"{MODULES[name]}: imports are absolute"
    package, _, module = (node.module or "").partition(".")
    if package != "commentree":
      continue
    for alias in node.names:
      whole = f"{module}.{alias.name}" if module else alias.name
      found.add(whole if whole in MODULES else module)
  return found & MODULES.keys() - {name, ""}


IMPORTS = {name: imports(name) for name in MODULES}


def assert_no_circle(graph):
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_module_imports_itself_by_way_of_others():
  # A package's own file may gather what lies in the package.
  assert_no_circle(
    {
      name: {other for other in found if not name.startswith(f"{other}.")}
      for name, found in IMPORTS.items()
    }
  )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_those_below_it(folder):
  for name, found in IMPORTS.items():
    if name.split(".")[0] != folder:
      continue
    tops = {other.split(".")[0] for other in found} & set(FOLDERS)
    assert tops <= {folder, *MAY_IMPORT[folder]}, f"{MODULES[name]}: imports {tops}"


def test_modules_at_the_top_import_no_folder():
  for name, found in IMPORTS.items():
    if name and "." not in name and name not in FOLDERS:
      assert not {other for other in found if other.split(".")[0] in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_subfolders_import_each_other_in_one_direction(folder):
  subfolders = {
    str(path.relative_to(ROOT)).replace("/", ".")
    for path in (ROOT / folder).iterdir()
    if (path / "__init__.py").exists()
  }

  def of(name):
    return next((s for s in subfolders if f"{name}.".startswith(f"{s}.")), None)

  graph = {subfolder: set() for subfolder in subfolders}
  for name, found in IMPORTS.items():
    if of(name):
      graph[of(name)] |= {of(other) for other in found} - {None, of(name)}
  assert_no_circle(graph)


def test_folders_and_files_stay_small():
  for folder in {path.parent for path in MODULES.values()} - {ROOT}:
    own = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(own) <= MOST_FILES, f"{folder}: holds {len(own)} files: divide it"
  for path in MODULES.values():
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES, f"{path}: has {lines} lines: divide it"


def test_files_that_documents_name_are_there():
  pattern = re.compile(r"`((?:tasks|models|training|launch|gin|tests|docs)/[\w./*]+)`")
  for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
    for name in pattern.findall(page.read_text()):
      name = name.rstrip("/")
      found = [*ROOT.glob(name), *(ROOT / "gin").glob(name)]
      assert found, f"{page.name}: there is no {name}"
