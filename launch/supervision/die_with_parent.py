"""`python die_with_parent.py PARENT_PID COMMAND…`: a command that dies with its parent.

Run as a file, so that nothing else is imported: it takes some milliseconds. On Linux
the kernel kills the command when the parent ends, however that ends; elsewhere there
is no such promise.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
  """Ties this process to its parent, then runs the command in its place."""
  parent, command = int(sys.argv[1]), sys.argv[2:]
  if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:  # it ended before the tie was made
    sys.exit(128 + signal.SIGKILL)
  try:
    os.execvp(command[0], command)
  except OSError as error:
    print(f"commentree: {command[0]}: {error.strerror}", file=sys.stderr)
    sys.exit(127)


if __name__ == "__main__":
  main()
