"""Settings that lie in somebody's MODEL_DIR, checked as data before gin reads them.

gin can import modules and call what it finds there, so `config.gin` is parsed here
first, by gin's own parser: literals, macros and references to our own settings pass,
nothing else does. What passes takes a bounded amount of time and memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tokenize
from collections.abc import Iterator
from typing import Any, NoReturn

from commentree import compat
from commentree.errors import UserError
from commentree.launch.settings.configurables import register
from gin import config_parser

FLAG = "--trust_config"

_MODULE = "commentree"
_REQUIRED = "gin.REQUIRED"
# Those that `train` writes have some 10 kB.
_MOST_CHARACTERS = 2**20
# gin evaluates what it has read of adjacent strings anew at each of them.
_MOST_ADJACENT_STRINGS = 1000
_DEEPEST = 32
_MOST_VALUES = 10**6
_LARGEST_NUMBER = 2**63
_LONGEST_REASON = 120


def check(text: str, where: str) -> None:
  """Makes sure that a gin file holds data alone.

  Args:
    text: the file's.
    where: its name, for errors.

  Raises:
    UserError: naming the line and what is refused there.
  """
  if len(text) > _MOST_CHARACTERS:
    raise UserError(
      f"{where}: has {len(text):,} characters; settings have at most"
      f" {_MOST_CHARACTERS:,}"
    )
  bindings = _Bindings(where)
  with _one_line(where):
    # Opened within: it reads the first token.
    parser = _Parser(text, where)
    while (statement := parser.parse_statement()) is not None:
      bindings.add(statement)
  bindings.check_references()


@dataclasses.dataclass(frozen=True)
class _Reference:
  """`@name()`, `@name` or `%name` at a line."""

  name: str
  line: int
  macro: bool

  def __str__(self) -> str:
    return f"{'%' if self.macro else '@'}{self.name}"


class _Delegate(config_parser.ParserDelegate):
  """Notes references; the parser, which knows the line, sets it."""

  def __init__(self) -> None:
    self.line = 0

  def configurable_reference(
    self,
    scoped_configurable_name: str,
    evaluate: bool,  # noqa: FBT001 gin hands it over by place
  ) -> _Reference:
    del evaluate
    return _Reference(scoped_configurable_name, self.line, macro=False)

  def macro(self, macro_name: str) -> _Reference:
    return _Reference(macro_name, self.line, macro=True)


class _Parser(config_parser.ConfigParser):
  """gin's parser, with bounds."""

  def __init__(self, text: str, where: str):
    self._where = where
    self._names = _Delegate()
    self._depth = 0
    self._strings = 0
    super().__init__(text, self._names)

  def parse_value(self) -> Any:
    line = self.current_token.start[0]
    self._depth += 1
    if self._depth > _DEEPEST:
      _refuse(self._where, line, f"values nested more than {_DEEPEST} deep")
    self._names.line = line
    value = super().parse_value()
    self._depth -= 1
    _check_value(value, self._where, line)
    return value

  def _advance_one_token(self) -> None:
    super()._advance_one_token()
    kind = self.current_token.type
    if kind == tokenize.STRING:
      self._strings += 1
    elif kind not in (tokenize.NL, tokenize.COMMENT):
      self._strings = 0
    if self._strings > _MOST_ADJACENT_STRINGS:
      line = self.current_token.start[0]
      _refuse(self._where, line, f"more than {_MOST_ADJACENT_STRINGS} strings in a row")


def _check_value(value: Any, where: str, line: int) -> None:
  """Refuses literals that no setting takes."""
  if isinstance(value, (bytes, complex)) or value is Ellipsis:
    _refuse(where, line, f"a value of type {type(value).__name__}")
  if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
    _refuse(where, line, "a number of more than 63 bits")
  if isinstance(value, str):
    try:
      encoded = os.fsencode(value)
    except UnicodeEncodeError:
      encoded = b"\0"
    if b"\0" in encoded:
      _refuse(where, line, "text with characters that no file has")


class _Bindings:
  """What a file sets: macros and settings, with what they refer to."""

  def __init__(self, where: str):
    self._where = where
    self._known = {config.__name__ for config in register()}
    self._values: dict[str, list[Any]] = {}
    self._sizes: dict[str, int] = {}

  def add(self, statement: Any) -> None:
    """Takes in a statement; refuses what is no data."""
    line = statement.location.line_num
    if isinstance(statement, config_parser.ImportStatement):
      # Not as a rule: `from __gin__ import dynamic_registration`.
      _refuse(self._where, line, f"`{statement.format()}`")
    if isinstance(statement, config_parser.IncludeStatement):
      _refuse(self._where, line, f"`include {statement.filename!r}`")
    if isinstance(statement, config_parser.BlockDeclaration):
      self._own(statement.selector, line, f"`{statement.selector}:`")
      return
    scoped = "/".join(filter(None, (statement.scope, statement.selector)))
    if statement.arg_name:
      name = f"{scoped}.{statement.arg_name}"
      key = "@" + self._own(statement.selector, line, f"the setting {name}")
    else:
      key = "%" + scoped
    self._values.setdefault(key, []).append(statement.value)

  def _own(self, selector: str, line: int, what: str) -> str:
    """Returns the name of a configuration of ours; refuses any other."""
    name = selector.removeprefix(f"{_MODULE}.")
    if name not in self._known:
      _refuse(self._where, line, what)
    return name

  def check_references(self) -> None:
    """Refuses references to what is not ours, or has no end."""
    for key in list(self._values):
      for reference in self._references(key):
        self._check_name(reference)
    for key in list(self._values):
      self._size_of(key, (), 0)

  def _references(self, key: str) -> Iterator[_Reference]:
    for value in self._values.get(key, ()):
      yield from (part for part in _parts(value) if isinstance(part, _Reference))

  def _check_name(self, reference: _Reference) -> None:
    if not reference.macro:
      selector = reference.name.rpartition("/")[2]
      self._own(selector, reference.line, f"`{reference}`")
      return
    is_constant = compat.is_gin_constant(reference.name)
    is_set = f"%{reference.name}" in self._values
    if reference.name != _REQUIRED and (is_constant or not is_set):
      _refuse(
        self._where, reference.line, f"`{reference}`, a macro that is not set here,"
      )

  def _size_of(self, key: str, above: tuple[str, ...], line: int) -> int:
    """Returns how many values a macro or a configuration comes to."""
    if key in self._sizes:
      return self._sizes[key]
    if key in above or len(above) > _DEEPEST:
      _refuse(self._where, line, f"`{key}`, which refers to itself or too far,")
    size = 1
    for part in itertools.chain.from_iterable(map(_parts, self._values.get(key, ()))):
      size += 1
      if isinstance(part, _Reference):
        name = part.name if part.macro else self._own(_last(part.name), part.line, "")
        size += self._size_of(
          ("%" if part.macro else "@") + name, (*above, key), part.line
        )
      if size > _MOST_VALUES:
        _refuse(self._where, line, f"`{key}`, more than {_MOST_VALUES:,} values,")
    self._sizes[key] = size
    return size


def _last(name: str) -> str:
  return name.rpartition("/")[2]


def _parts(value: Any) -> Iterator[Any]:
  """Yields a value, or the values that it is made of."""
  if isinstance(value, dict):
    for key, item in value.items():
      yield from _parts(key)
      yield from _parts(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _parts(item)
  else:
    yield value


def _refuse(where: str, line: int, what: str) -> NoReturn:
  raise UserError(
    f"{where}, line {line}: {what} is refused: settings in a MODEL_DIR may hold"
    f" literals, macros and commentree's settings; {FLAG} takes more, and may run code"
  )


@contextlib.contextmanager
def _one_line(where: str) -> Iterator[None]:
  """Turns what gin's parser raises into one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # SyntaxError, TokenError, TypeError of a dictionary's key
    line = getattr(error, "lineno", None)
    if isinstance(error, tokenize.TokenError):
      line = error.args[1][0]
    reason = getattr(error, "msg", None) or error.args[0] if error.args else ""
    reason = " ".join(str(reason).split())[:_LONGEST_REASON] or type(error).__name__
    place = f", line {line}" if line else ""
    raise UserError(
      f"{where}{place}: is not valid gin ({reason}): mend it, or copy it again"
    ) from error
