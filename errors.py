"""The one exception for a mistake its user can mend.

Command line entry points print a `UserError` as one line and exit with 2; every
other exception is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
  """A user's mistake, in one line: what is wrong, where, and how to mend it."""
