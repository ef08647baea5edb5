"""The settings reference: every setting of every command by its dotted name, made from the settings classes.

Types, defaults and texts are read off pydantic's JSON schema, whose descriptions are the docstrings below the fields.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from treeopo.config import EMBEDDED, BuildConfig, EvalConfig, Section, TrainConfig
from treeopo.errors import ConfigError

CONFIGS: Final[Mapping[str, type[Section]]] = {"train": TrainConfig, "build": BuildConfig, "eval": EvalConfig}
"""The commands that take settings; build is `treeopo mcts build`."""

_WORDS = {"string": "text", "boolean": "true or false", "null": "none", "object": "table"}

_INTRODUCTION = """\
# Settings

Made by `treeopo settings --markdown` from the docstrings of the settings classes; `treeopo settings train kl` prints
those of `treeopo train` whose names begin with `kl`. A configuration file (`--config FILE`) and `--set NAME=VALUE`
take them under these names; a flag wins over the file. *Embedded* is the default where the model that ships is used;
`none` is a setting that is left out. What names a place (a path, a directory of a model, a file of problems) may begin
with `~`.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `default` is written as TOML writes it (none: no value); `embedded` is the default where the
    embedded model is used, if that is another.
    """

    name: str
    kind: str
    default: str
    embedded: str | None
    text: str

    @property
    def section(self) -> str:
        """The first part of a dotted name; empty for a setting of the command's own."""
        first, dot, _ = self.name.partition(".")
        return first if dot else ""

    @property
    def defaults(self) -> str:
        """Both defaults, in one line."""
        return self.default if self.embedded is None else f"{self.default} (embedded: {self.embedded})"


def command_settings(command: str) -> list[Setting]:
    """Every setting of a command of `CONFIGS`: its own, then those of each section."""
    kind = CONFIGS[command]
    schema = kind.model_json_schema()
    found = list(_settings(schema, schema["$defs"], "", {}, EMBEDDED.get(kind, ("", {}))[1]))
    return sorted(found, key=lambda setting: bool(setting.section))


def find_settings(name: str, commands: Iterable[str] = CONFIGS) -> dict[str, list[Setting]]:
    """By command, the settings whose names begin with `name`; where none does, those that hold it anywhere.

    Raises:
        ConfigError: no setting of these commands has such a name.
    """
    every = {command: command_settings(command) for command in commands}
    for fits in (str.startswith, str.__contains__):
        found = {command: [row for row in rows if fits(row.name, name)] for command, rows in every.items()}
        if any(found.values()):
            return found
    raise ConfigError(f"no setting of {', '.join(every)} is called {name!r}; `treeopo settings` lists them all")


def markdown() -> str:
    """The page docs/settings.md: the settings of each command, and each section once for all commands that have it."""
    tables: dict[tuple[str, tuple[Setting, ...]], list[str]] = {}
    for command in CONFIGS:
        for section, rows in groupby(command_settings(command), lambda setting: setting.section):
            tables.setdefault((section, tuple(rows)), []).append(command)
    order = sorted(tables.items(), key=lambda table: bool(table[0][0]))
    return "\n".join([_INTRODUCTION, *(_table(section, commands, rows) for (section, rows), commands in order)])


def _settings(
    schema: Mapping[str, Any],
    definitions: Mapping[str, Any],
    prefix: str,
    defaults: Mapping[str, Any],
    embedded: Mapping[str, Any],
) -> Iterator[Setting]:
    """The settings of an object's schema; `defaults` are those that the object around it gives its fields."""
    for key, field in schema["properties"].items():
        name, default = prefix + key, defaults.get(key, field.get("default"))
        inner = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        if "properties" in inner:
            yield from _settings(inner, definitions, f"{name}.", default or {}, embedded.get(key, {}))
            continue
        yield Setting(
            name=name,
            kind=_kind(field, definitions),
            default=_value(default),
            embedded=_value(embedded[key]) if key in embedded else None,
            text=" ".join(field.get("description", "").split()),
        )


def _value(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type of a field in words."""
    if "$ref" in field:
        return _kind(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        return " or ".join(_kind(each, definitions) for each in field["anyOf"])
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return ", ".join(field["enum"])
    if field["type"] == "array":
        return f"list of {_kind(field['items'], definitions)}"
    word = field.get("format", _WORDS.get(field["type"], field["type"]))
    return f"{word}, at least {field['minimum']}" if "minimum" in field else word


def _table(section: str, commands: Sequence[str], rows: Sequence[Setting]) -> str:
    described = " ".join((CONFIGS[commands[0]].model_fields[section].description or "").split()) if section else ""
    lines = [f"## {section} ({', '.join(commands)})", "", described] if section else [f"## {commands[0]}"]
    lines += ["", "| setting | type | default | |", "|---|---|---|---|"]
    for row in rows:
        embedded = f"; embedded `{row.embedded}`" if row.embedded is not None else ""
        lines.append(
            f"| `{row.name}` | {row.kind} | `{row.default}`{embedded} | {row.text.replace('|', chr(92) + '|')} |"
        )
    return "\n".join([*lines, ""])
