"""Consoles that write into memory."""


def printed(console) -> str:
  """What a console over an `io.StringIO` has printed."""
  return console.file.getvalue()
