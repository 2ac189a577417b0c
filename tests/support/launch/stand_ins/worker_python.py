"""Stands in for `python3` on a worker: makes an environment without installing.

`-m venv DIR` fills DIR with stand-ins: a python that records what pip is asked for, and
a commentree whose `launch` is the real one, supervising `trainer.py`.
"""

import pathlib
import shlex
import sys

HERE = pathlib.Path(__file__).parent


def executable(path, *words):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
  path.chmod(0o755)


def main():
  match sys.argv[1:]:
    case ["-c", _]:
      pass  # new enough
    case ["-m", "venv", folder]:
      bin_folder = pathlib.Path(folder) / "bin"
      executable(bin_folder / "python", sys.executable, HERE / "worker_python.py")
      executable(
        bin_folder / "commentree", sys.executable, HERE / "worker_commentree.py"
      )
    case ["-m", "pip", "install", *words]:
      with open("pip.txt", "a") as stream:
        print(*words, sep="\n", file=stream)
      if pathlib.Path("pip_fails").exists():
        sys.exit("ERROR: no matching distribution")
    case other:
      sys.exit(f"worker_python.py: {other}")


if __name__ == "__main__":
  main()
