"""Times as sources write them."""

from __future__ import annotations

import datetime
import email.utils
from typing import Any

# Larger numbers are milliseconds: as seconds they would be of the year 5138 or later.
_FIRST_MILLISECONDS = 10**11
_LATEST = 2**62
_TIME_OF_TWITTER = "%a %b %d %H:%M:%S %z %Y"


def time_of(value: Any) -> int | None:
  """Seconds since 1970 from a time in any usual form; in UTC if it does not say.

  Args:
    value: a number or its digits (milliseconds from 10^11 on), a date of Python's, or
      text as of ISO 8601, of mail or of Twitter.
  """
  if isinstance(value, str):
    try:
      value = float(value)
    except ValueError:
      value = _date(value.strip())
  if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
    value = datetime.datetime(value.year, value.month, value.day)
  if isinstance(value, datetime.datetime):
    if value.tzinfo is None:
      value = value.replace(tzinfo=datetime.UTC)
    try:
      value = value.timestamp()
    except (ValueError, OverflowError):
      return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  if abs(value) >= _FIRST_MILLISECONDS:
    value /= 1_000
  return int(value) if 0 <= value <= _LATEST else None  # NaN: None


def _date(written: str) -> datetime.datetime | None:
  if len(written) > 64:
    return None
  for parse in (
    datetime.datetime.fromisoformat,
    email.utils.parsedate_to_datetime,
    lambda text: datetime.datetime.strptime(text, _TIME_OF_TWITTER),
  ):
    try:
      return parse(written)
    except (ValueError, TypeError, IndexError, OverflowError):
      continue
  return None
