"""docs/settings.md: every setting, from the classes themselves.

`python -m commentree.launch.settings.settings_page` writes it.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from commentree.launch.settings.configurables import RunConfig, register
from commentree.launch.settings.gin_cli import GIN_ROOT
from commentree.models.decoding.decoding_config import DecodingConfig
from commentree.settings import Resume, bounds_text, kinds_of, resume_rule, unpack
from commentree.tasks.building.config import BuildConfig
from commentree.tasks.inspection.views import InspectionConfig
from commentree.tasks.vocabulary.vocabularies import VocabularyConfig

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "settings.md"

_HEAD = """\
# Settings

Made from the classes by `make settings`; do not edit. A setting is a field of a class:
`--gin.MaskingConfig.rate=0.2`. Where a macro of `runs/common.gin` sets the field, give
the macro: `--gin.LEARNING_RATE=0.001`.

A run that continues in its MODEL_DIR must have the settings marked `same` as before.
Those marked `by content` may be written otherwise, if the data that come of them are as
before. Those that `may change` do not decide results, or the run continues as well with
another value.
"""
# Those that gin does not bind, and what does.
SET_BY_FLAGS: Mapping[type, str] = {
  BuildConfig: "flags of `commentree build`",
  VocabularyConfig: "flags of `commentree vocab`",
  InspectionConfig: "flags of `commentree inspect`, and by the run that it shows",
  DecodingConfig: "flags of `commentree infer --mode=generate` and `export`, by"
  " arguments of `generate` in Python, and by the run's vocabulary",
}

_BINDING = re.compile(r"^(\w+\.\w+) = %(\w+)$", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^  (\w+): ")
_LONGEST_DEFAULT = 100


def text() -> str:
  """Returns the page."""
  macros = dict(_BINDING.findall((GIN_ROOT / "runs" / "common.gin").read_text()))
  rules = resume_rules(RunConfig)
  return "\n".join([_HEAD, *(_section(config, macros, rules) for config in configs())])


def configs() -> tuple[type, ...]:
  """Returns the classes that the page shows."""
  return (*register(), *SET_BY_FLAGS)


def resume_rules(config: Any, above: Resume = Resume.SAME) -> dict[str, Resume]:
  """Returns what a run that continues allows of each setting, by 'CLASS.FIELD'.

  Args:
    config: a class of settings; those of its fields are gone through too.
    above: what holds for all of `config`; SAME if each field says for itself.
  """
  found: dict[str, Resume] = {}
  for name, kind in kinds_of(config).items():
    rule = resume_rule(kind) if above is Resume.SAME else above
    found[f"{config.__name__}.{name}"] = rule
    if dataclasses.is_dataclass(part := unpack(kind)[0]):
      found |= resume_rules(part, rule)
  return found


def _section(
  config: Any, macros: Mapping[str, str], rules: Mapping[str, Resume]
) -> str:
  summary = inspect.cleandoc(config.__doc__).splitlines()[0]
  if config in SET_BY_FLAGS:
    summary += f" Set by {SET_BY_FLAGS[config]}; not by gin."
  lines = [f"## {config.__name__}", "", summary, ""]
  lines += ["| setting | type | default | macro | to continue | meaning |"]
  lines += ["|---|---|---|---|---|---|"]
  said, kinds = meanings(config), kinds_of(config)
  for field in dataclasses.fields(config):
    full_name = f"{config.__name__}.{field.name}"
    macro, rule = macros.get(full_name), rules.get(full_name)
    cells = [
      f"`{field.name}`",
      describe(kinds[field.name]),
      _default(field),
      f"`{macro}`" if macro else "",
      rule.value if rule else "",
      said.get(field.name, ""),
    ]
    lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
  return "\n".join([*lines, ""])


def meanings(config: Any) -> dict[str, str]:
  """Returns what a class's docstring says of each of its fields."""
  found: dict[str, str] = {}
  name = ""
  section = inspect.cleandoc(config.__doc__).partition("\nAttributes:\n")[2]
  for line in section.splitlines():
    if match := _ATTRIBUTE.match(line):
      name, line = match[1], line[match.end() :]
    if name:
      found[name] = f"{found.get(name, '')} {line.strip()}".strip()
  return found


def describe(kind: Any) -> str:
  """Returns an annotation in words."""
  base, bounds = unpack(kind)
  origin, members = get_origin(base), get_args(base)
  if dataclasses.is_dataclass(base):
    name = typing.cast(type, base).__name__
    return f"[{name}](#{name.lower()})"
  if base in (int, float):
    number = "whole number" if base is int else "number"
    return f"{number} {bounds_text(*bounds)}".strip()
  if origin in (typing.Union, types.UnionType):
    return " or ".join(map(describe, members))
  if origin is Literal:
    return ", ".join(f"`{choice!r}`" for choice in members)
  if origin is tuple and members[-1] is not Ellipsis:
    return f"({', '.join(map(describe, members))})"
  if origin is not None and issubclass(origin, Mapping):
    return f"mapping to: {describe(members[1])}"
  if origin is not None:
    return f"list of: {describe(members[0])}"
  names = {bool: "True or False", str: "text", type(None): "None", Any: "anything"}
  return names[base]


def _default(field: dataclasses.Field[Any]) -> str:
  value = field.default
  if field.default_factory is not dataclasses.MISSING:
    value = field.default_factory()
  if value is dataclasses.MISSING:
    return "required"
  if dataclasses.is_dataclass(value):
    return "its defaults"
  shown = repr(value)
  return f"`{shown}`" if len(shown) <= _LONGEST_DEFAULT else "see the class"


if __name__ == "__main__":
  PAGE.write_text(text())
