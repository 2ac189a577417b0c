"""optax's optimizers by name, looked up without importing optax.

Importing takes seconds where a name takes none: a misspelt one is reported at once.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re

from commentree.errors import UserError, suggestion

_LOSS = "needs the loss with each update, which is not given here"
_ANOTHER = "wraps another optimizer, which is not given here"
_CONSTANT = "takes a constant learning rate and no schedule"

REFUSED = {
  "dpsgd": "needs the gradient of each example, which is not given here",
  "lbfgs": "searches along a line, for which the loss function is not given here",
  "mechanize": _ANOTHER,
  "momo": _LOSS,
  "momo_adam": _LOSS,
  "optimistic_adam": f"{_CONSTANT}; name optimistic_adam_v2",
  "polyak_sgd": _LOSS,
  "rprop": _CONSTANT,
  "sam": "needs a second gradient each step, which is not given here",
  "schedule_free": f"{_ANOTHER}; name schedule_free_adamw or schedule_free_sgd",
  "sm3": _CONSTANT,
  "sophia": "needs second derivatives, which are not given here",
  "split_real_and_imaginary": _ANOTHER,
}
"""Optimizers that a run cannot use, and why."""

_IMPORTED = re.compile(r"import (\w+)\b")


def listed() -> tuple[str, ...]:
  """Returns the names that optax and optax.contrib list, optimizers among them."""
  spec = importlib.util.find_spec("optax")
  places = spec.submodule_search_locations if spec is not None else None
  if not places:
    raise UserError("optax is not installed: pip install commentree again")
  folder = pathlib.Path(places[0])
  texts = (
    (folder / part / "__init__.py").read_text("utf-8") for part in (".", "contrib")
  )
  return tuple(dict.fromkeys(n for text in texts for n in _IMPORTED.findall(text)))


def check(name: str) -> None:
  """Raises UserError for an optimizer that optax has not, or that a run cannot use."""
  if name in REFUSED:
    raise UserError(
      f"OptimizerConfig.name = {name!r}: cannot be used, as it {REFUSED[name]}"
    )
  known = [n for n in listed() if n.islower() and not n.startswith("_")]
  if name not in known:
    raise UserError(
      f"OptimizerConfig.name = {name!r}: optax has no such optimizer, nor has"
      f" optax.contrib{suggestion(name, known)}"
    )
