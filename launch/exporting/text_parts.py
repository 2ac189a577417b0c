"""What an export needs to read text: our own files, copied under another name.

Cleaning, markers, vocabularies and what they import go along as they are, so that an
export reads text as training did, without commentree; its imports are renamed, so that
a commentree of another version that is installed is not in the way.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import commentree
from commentree.launch.inference.run_context import RunContext
from commentree.tasks.config.preprocessing import PreprocessingConfig

# Of the folder that the copies are in, and of the file that `run.py` imports.
FOLDER, READER_FILE = "text_parts", "texts.py"

_READER = "launch.exporting.text_reader"
_ROOT = pathlib.Path(commentree.__file__).parent
_IMPORT = re.compile(r"^(\s*from )commentree\b", re.MULTILINE)
# Parts of `PreprocessingConfig` that decide how a text is read.
_SETTINGS = ("trees", "cleaning", "markers", "subtrees")


def files() -> dict[str, str]:
  """Returns the files by their places in an export."""
  found = _with_imports(_READER)
  reader = found.pop(_READER)
  copies = {
    f"{FOLDER}/{name.replace('.', '/')}.py": source for name, source in found.items()
  }
  folders = {parent for path in copies for parent in pathlib.PurePath(path).parents}
  packages = {f"{folder}/__init__.py": "" for folder in folders if folder.name}
  return {READER_FILE: reader, **packages, **copies}


def _with_imports(name: str) -> dict[str, str]:
  """Returns a module of ours and all that it imports, by name; imports renamed."""
  found: dict[str, str] = {}
  waiting = [name]
  while waiting:
    name = waiting.pop()
    if name in found:
      continue
    source = _file_of(name).read_text()
    found[name] = _IMPORT.sub(rf"\1{FOLDER}", source)
    waiting += _imports(ast.parse(source))
  return found


def _imports(module: ast.AST) -> Iterator[str]:
  """Yields the modules of ours that one imports, but not for types alone."""
  for node in ast.iter_child_nodes(module):
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
      continue
    if isinstance(node, ast.ImportFrom):
      package, _, name = (node.module or "").partition(".")
      if package == "commentree":
        for alias in node.names:
          whole = f"{name}.{alias.name}".lstrip(".")
          yield whole if _file_of(whole).exists() else name
    yield from _imports(node)


def _file_of(name: str) -> pathlib.Path:
  return _ROOT / f"{name.replace('.', '/')}.py"


def settings_of(run: RunContext) -> dict[str, Any]:
  """Returns what `spec.json` says of how text is read; or `why_not` it cannot be."""
  preprocessing: PreprocessingConfig = run.builder.preprocessing
  if preprocessing.subtrees.long_comments != "truncate":
    return {"why_not": "SubtreeConfig.long_comments is 'chunk'"}
  if run.config.model.num_languages:
    return {"why_not": "ModelConfig.num_languages is not 0"}
  settings = {
    name: dataclasses.asdict(getattr(preprocessing, name)) for name in _SETTINGS
  }
  return {"settings": settings, "vocabulary_markers": list(run.tokenizer.markers)}
