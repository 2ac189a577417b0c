"""`regress`: a number for each comment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from commentree.launch.inference.devices import Compute
from commentree.launch.inference.documents import EMPTY
from commentree.launch.inference.modes.base import Answer, rounded
from commentree.launch.inference.modes.classify import OfComments
from commentree.models.model import CommentTreeModel

_TOO_LARGE = "too large for a number"


class Regress(OfComments):
  """The number of each comment, in the scale of the data."""

  name = "regress"

  @property
  def note(self) -> str:
    """Says what numbers of a ranking are."""
    if self.run.config.model.regression_loss != "ranking":
      return ""
    return (
      "this run ranks: its numbers order the replies to one comment, and tell nothing"
      " else"
    )

  def compute(self, model: CommentTreeModel) -> Compute:
    """Returns the numbers, `[B, G, M]`, as they are learnt."""

    def compute(params: Any, batch: Any) -> Any:
      return model.predict_batch(params, self.hide(batch))

    return compute

  def answer(self, found: np.ndarray | None) -> Answer:
    """Returns `number`."""
    if found is None:
      return {"number": None, "why": EMPTY}
    number = float(found)
    if self.run.config.model.regression_loss != "ranking":
      number = self.run.config.data.preprocessing.comment_numbers.restored(number)
    if not math.isfinite(number):
      return {"number": None, "why": _TOO_LARGE}
    return {"number": rounded(number)}
