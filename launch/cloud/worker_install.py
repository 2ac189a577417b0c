"""What is installed on the workers of a slice, and how it gets there."""

from __future__ import annotations

import pathlib
import re
import shlex
import tarfile

from commentree.errors import UserError
from commentree.launch.cloud import worker_scripts
from commentree.launch.cloud.shell import Shell

_PACKAGE = pathlib.Path(__file__).parents[2]


class Package:
  """What to install: this source, a wheel, or anything pip takes.

  Attributes:
    requirement: for pip, on a worker.
    is_source: whether it is unpacked from a copy of the source.
  """

  def __init__(self, given: str | None):
    """Takes a `--package` flag; None: this source.

    Raises:
      UserError: if it names nothing that can be installed.
    """
    self.is_source = given is None
    self._wheel: pathlib.Path | None = None
    if given is None:
      if not (_PACKAGE / "setup.py").is_file():
        raise UserError(
          f"--package is missing: {_PACKAGE} holds no setup.py to install from; name a"
          " wheel, or what pip takes, such as git+https://…"
        )
      self.requirement = "./source[tpu]"
    elif given.endswith(".whl"):
      self._wheel = pathlib.Path(given)
      if not self._wheel.is_file():
        raise UserError(f"--package={given}: no such file")
      self.requirement = f"./{self._wheel.name}[tpu]"
    elif "://" in given and "@ " not in given:
      self.requirement = f"commentree[tpu] @ {given}"
    elif "[" in given or "@" in given:
      self.requirement = given
    else:
      self.requirement = re.sub(r"^[\w.-]+", r"\g<0>[tpu]", given)

  def stage(self, folder: str, shell: Shell) -> str | None:
    """Returns the file to copy to the workers, made in a folder if need be."""
    if not self.is_source:
      return str(self._wheel) if self._wheel else None
    path = f"{folder}/{worker_scripts.SOURCE}"
    if shell.dry_run:
      shell.note(f"mkdir -p {shlex.quote(folder)}")
      shell.run(
        ["tar", "--exclude=__pycache__", "-czf", path, "-C", str(_PACKAGE), *_sources()]
      )
      return path
    # `tar` fails where a folder changes as it is read, as by Python's `__pycache__`.
    with tarfile.open(path, "w:gz") as archive:
      for name in _sources():
        archive.add(_PACKAGE / name, name, filter=_without_caches)
    return path


def _without_caches(found: tarfile.TarInfo) -> tarfile.TarInfo | None:
  return None if found.name.endswith("__pycache__") else found


def _sources() -> list[str]:
  """What of the source's folder goes into the package."""
  files = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "py.typed", "gin")
  modules = sorted(p.name for p in _PACKAGE.glob("*.py") if p.name != "setup.py")
  packages = sorted(p.parent.name for p in _PACKAGE.glob("*/__init__.py"))
  named = [*files, *modules, *(name for name in packages if name != "tests")]
  return [name for name in named if (_PACKAGE / name).exists()]
