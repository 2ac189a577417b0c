"""The rules for a source: by the names that it has, and the user's before them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from commentree.errors import UserError
from commentree.models.config import ModelConfig
from commentree.training.warm_starts import hugging_face
from commentree.training.warm_starts.formats import safetensors
from commentree.training.warm_starts.formats.array_source import (
  ArraySource,
  ArraySpec,
  Unstacked,
)
from commentree.training.warm_starts.rules import (
  COLUMNS,
  OPTIMIZER_PREFIX,
  ROWS,
  Assignment,
  Rule,
  WarmStartPlan,
  plan,
)
from commentree.training.warm_starts.sources import open_source

Mapped = tuple[ArraySource, Assignment]

_PARAMETERS = ("target.", "params.params.", "params.", "")
_OURS = re.compile(r"(.*\.)?layers\.(?!\d)(.+)")
# T5X's scalable_t5 names the stack twice, and runs over layers along axis 1.
_SCALABLE = re.compile(r"(target\.(encoder|decoder))\.\2\.(.+)")


def plan_for(
  path: str,
  target: Mapping[str, ArraySpec],
  own: Iterable[Sequence[Any]] = (),
  settings: ModelConfig | None = None,
) -> tuple[ArraySource, WarmStartPlan]:
  """Opens files and works out where every parameter comes from.

  Args:
    path: what `open_source` opens.
    target: the parameters.
    own: the user's rules, as `TrainConfig.warm_start_rules` has them.
    settings: the model's, to compare with those that come with the files, if any do.

  Raises:
    UserError: if they cannot be read or do not fit; see `rules.plan`.
  """
  source, assignment = rules_for(open_source(path), settings)
  return source, plan(target, source, assignment, [Rule(*rule) for rule in own])


def rules_for(source: ArraySource, settings: ModelConfig | None = None) -> Mapped:
  """Returns the source, its layers apart, and the rules for it.

  Args:
    source: as opened.
    settings: the model's, to compare with those that come with the files, if any do.

  Raises:
    UserError: if the files are of a model that these settings do not make.
  """
  # Every model of ours has one, in any format.
  ours = "ancestors.null_vector" in source.arrays
  if source.kind == safetensors.KIND and not ours:
    return hugging_face.rules_for(source, settings)
  source = Unstacked(source, _layer_of)
  if settings is not None:
    _check_logits(source, settings)
  return source, t5x_rules(source)


def _check_logits(source: ArraySource, settings: ModelConfig) -> None:
  """Raises UserError if logits by the table would leave weights of their own out."""
  if not settings.logits_via_embedding or settings.head != "masked_lm":
    return
  for prefix in _PARAMETERS:
    if (name := f"{prefix}decoder.logits_dense.kernel") in source.arrays:
      raise UserError(
        f"{source.path} ({source.kind}) holds weights of its logits, {name}: set"
        " ModelConfig.logits_via_embedding = False"
      )


def t5x_rules(source: ArraySource) -> list[Rule]:
  """Returns the rules for arrays that are named as T5X names them, ours among them.

  A T5's parts must all be there, so that a missing part is reported; what T5 does
  not have is fresh where it is not there.
  """
  prefix = next(p for p in _PARAMETERS if any(n.startswith(p) for n in source.arrays))
  if prefix == "" and any(n.startswith(OPTIMIZER_PREFIX) for n in source.arrays):
    raise UserError(f"{source.path} holds no parameters under 'target'")
  same = f"{prefix}\\g<0>"
  embedding = source.arrays.get(f"{prefix}token_embedder.embedding")
  rules = [Rule(r"token_embedder\.embedding", same, ROWS)]
  logits = f"{prefix}decoder.logits_dense.kernel"
  if logits not in source.arrays and embedding is not None:
    # T5 1.0 has one table for both, and divides the logits by the width's root.
    scale = 1 / math.sqrt(embedding.shape[-1])
    rules.append(
      Rule(
        r"decoder\.logits_dense\.kernel",
        f"{prefix}token_embedder.embedding",
        f"transpose, scale:{scale!r}, {COLUMNS}",
      )
    )
  table = r"decoder\.relpos_bias\."
  if any(name.startswith(f"{prefix}ancestors.") for name in source.arrays):
    # Ours tells by its name which table of positions it has.
    has = f"{prefix}decoder.relpos_bias."
    if f"{has}causal_rel_embedding" in source.arrays:
      rules.append(
        Rule(f"{table}rel_.*", f"{has}causal_rel_embedding", "from_causal_buckets")
      )
    else:
      rules.append(
        Rule(f"{table}causal_.*", f"{has}rel_embedding", "to_causal_buckets")
      )
  else:
    # A T5, whose decoder is causal. Its states have the size of the scale of their
    # norm, and so has the vector for no ancestors.
    rules += [
      Rule(f"{table}rel_.*", same, "from_causal_buckets"),
      Rule(f"{table}causal_.*", f"{prefix}decoder.relpos_bias.rel_embedding"),
      Rule(r"ancestors\.null_vector", f"{prefix}encoder.encoder_norm.scale"),
      Rule(r"language_embedding|ancestors\.depth_embedding", None, "zeros"),
    ]
  return [
    *rules,
    Rule(r"decoder\.logits_dense\.kernel", same, COLUMNS),
    Rule(r"decoder\.logits_bias", same, ROWS),
    Rule(r"(token_embedder|encoder|decoder)\..*", same),
    Rule(r".*", f"{same}?"),
  ]


def _layer_of(name: str) -> tuple[str, int] | None:
  """Returns the template of a stack's layers, and the axis that runs over them."""
  if name.startswith(OPTIMIZER_PREFIX):
    return None
  if match := _SCALABLE.fullmatch(name):
    return f"{_literal(match[1])}.layers_{{}}.{_literal(match[3])}", 1
  if match := _OURS.fullmatch(name):
    return f"{_literal(match[1] or '')}layers_{{}}.{_literal(match[2])}", 0
  return None


def _literal(text: str) -> str:
  return text.replace("{", "{{").replace("}", "}}")
