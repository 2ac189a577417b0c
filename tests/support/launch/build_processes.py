"""`commentree build` as a process, and the processes below it."""

import contextlib
import pathlib
import subprocess
import sys


def command(*arguments):
  return [sys.executable, "-m", "commentree.launch.main", "build", *map(str, arguments)]


def start(*arguments):
  return subprocess.Popen(
    command(*arguments),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def children(pid):
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
        found.append(int(folder.name))
  return found


def resident_mb(pid):
  """Memory of a process and all below it; shared pages are divided among those."""
  total = 0
  for each in [pid, *children(pid)]:
    with contextlib.suppress(OSError):
      facts = pathlib.Path(f"/proc/{each}/smaps_rollup").read_text()
      total += int(facts.split("Pss:")[1].split()[0])
  return total / 1024
