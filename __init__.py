"""commentree: pretrain and fine-tune language models on trees of comments.

`commentree.load(MODEL_DIR)` gives a trained model; see `launch/inference/model.py`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from commentree.launch.inference.model import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
  """Loads what is heavy when it is asked for."""
  if name == "load":
    from commentree.launch.inference.model import load

    return load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
