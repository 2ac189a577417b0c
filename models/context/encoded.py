"""What the encoder makes of the comments of a batch."""

from __future__ import annotations

import flax.struct

from commentree.models.layers import Array


@flax.struct.dataclass
class Encoded:
  """The comments of a batch, encoded.

  Attributes:
    vectors_BEJD: their pooled vectors; with `context = "concatenated"` the token states
      of each target's thread: E is T, and J is `max_context_tokens`.
    used_BEJ: which of these hold anything.
    states_BND: the encoder's last states of all its tokens.
  """

  vectors_BEJD: Array
  used_BEJ: Array
  states_BND: Array
