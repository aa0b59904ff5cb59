"""YAML files read against pydantic models; every error says file, line, column, expected and found.

Stricter than YAML 1.2: one document, a mapping at the top, no aliases (nothing can multiply), no tags, no
duplicate keys, no conversion between types (``"3"`` is no integer).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from opadapt.errors import ConfigError, first_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
Location = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

_PRIVATE = {"host"}  # keys whose values are not shown again: somebody may have put a password there
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("null", "bool", "int", "float")}
_TEXT = {_TAG + kind for kind in ("str", "timestamp")}  # a date stays the text it is


@dataclass(frozen=True)
class Override:
    """A value given on the command line: where it belongs, what it is, and the flag it came from."""

    location: tuple[str, ...]
    value: Any
    flag: str


@dataclass(frozen=True)
class Document:
    """Plain values (dict, list, scalars) and the place of each, as text: ``file:line:column`` or a flag."""

    name: str
    folder: Path | None = None  # what relative paths start from; None: the working directory
    values: dict[str, Any] = field(default_factory=dict)
    places: Mapping[Location, str] = field(default_factory=dict)
    keys: Mapping[Location, str] = field(default_factory=dict)
    flags: frozenset[Location] = frozenset()

    def place(self, location: Sequence[str | int]) -> str:
        """The place of the deepest part of a location that exists in the document."""
        return self.places.get(self._known(location), self.name)

    def value(self, location: Sequence[str | int]) -> Any:
        found: Any = self.values
        for part in self._known(location):
            found = found[part]
        return found

    def _known(self, location: Sequence[str | int]) -> Location:
        known: Location = ()
        for part in location:  # pydantic puts names of union members between the keys: skipped
            if (*known, part) in self.places:
                known = (*known, part)
        return known


def read_yaml(path: Path) -> Document:
    """Parse a file. Raises ConfigError with the place of whatever is wrong."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read", expected="a YAML file", found=first_line(error)
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text", expected="UTF-8", found=error.reason) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: too large", expected=f"at most {MAX_BYTES} bytes", found=str(len(data)))
    return parse_yaml(text, str(path), path.resolve().parent)


def parse_yaml(text: str, name: str, folder: Path | None = None) -> Document:
    """Parse YAML text; ``name`` stands for the file in messages. Raises ConfigError."""
    node = _compose(text, name)
    places: dict[Location, str] = {}
    keys: dict[Location, str] = {}
    if node is None:
        return Document(name, folder, {}, {(): f"{name}:1:1"}, {})
    if not isinstance(node, MappingNode):
        raise _error(name, node, "the top level must be a mapping", "lines 'key: value'", _describe(node))
    values = _Walk(name, places, keys).value(node, ())
    return Document(name, folder, values, places, keys)


def _compose(text: str, name: str) -> Node | None:
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(StringIO(text)):
            kind = type(event).__name__
            depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
            if kind == "AliasEvent":
                raise _error(name, event, "aliases are not allowed", "the value itself", f"*{event.anchor}")
            if depth > MAX_DEPTH:
                raise _error(name, event, "nested too deeply", f"at most {MAX_DEPTH} levels", "more")
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
        return node
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(
            f"{place}: not valid YAML",
            found=" ".join(text for text in (error.problem, error.context) if text) or first_line(error),
        ) from error
    except (YAMLError, RecursionError) as error:
        raise ConfigError(
            f"{name}: not valid YAML", found=first_line(error) if str(error) else "nesting"
        ) from error


@dataclass(frozen=True)
class _Walk:
    """Turns nodes into plain values and notes where each one and each key was."""

    name: str
    places: dict[Location, str]
    keys: dict[Location, str]

    def value(self, node: Node, location: Location) -> Any:
        self.places[location] = _place(self.name, node)
        if isinstance(node, MappingNode):
            return self._mapping(node, location)
        if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(child, (*location, i)) for i, child in enumerate(node.value)]
        if isinstance(node, ScalarNode) and node.tag in _TEXT:
            return node.value
        if isinstance(node, ScalarNode) and node.tag in _PLAIN:
            return YAML(typ="safe", pure=True).constructor.construct_object(node, deep=True)
        raise _error(self.name, node, "tags are not allowed", "a plain value", str(node.tag))

    def _mapping(self, node: MappingNode, location: Location) -> dict[str, Any]:
        if node.tag != _TAG + "map":
            raise _error(self.name, node, "tags are not allowed", "a plain mapping", str(node.tag))
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _error(self.name, key_node, "a key must be text", "a word", _describe(key_node))
            key = str(key_node.value)
            inner = (*location, key)
            if key in result:
                message = f"key '{key}' occurs twice"
                raise _error(self.name, key_node, message, "once", f"another at {self.keys[inner]}")
            self.keys[inner] = _place(self.name, key_node)
            result[key] = self.value(child, inner)
        return result


def _place(name: str, node: Any) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _describe(node: Node) -> str:
    return (
        "a mapping"
        if isinstance(node, MappingNode)
        else "a list"
        if isinstance(node, SequenceNode)
        else repr(node.value)
    )


def _error(name: str, node: Any, message: str, expected: str, found: str) -> ConfigError:
    return ConfigError(f"{_place(name, node)}: {message}", expected=expected, found=found)


def with_overrides(document: Document, overrides: Sequence[Override]) -> Document:
    """The document with flags put over it; a later flag wins over an earlier one."""
    values = json.loads(json.dumps(document.values))
    places, flags = dict(document.places), set(document.flags)
    for override in overrides:
        target = values
        *parents, last = override.location
        for depth, part in enumerate(parents):
            if not isinstance(target.get(part), dict):
                target[part] = {}
                places[override.location[: depth + 1]] = override.flag
            target = target[part]
        target[last] = override.value
        places = {p: text for p, text in places.items() if p[: len(override.location)] != override.location}
        places.update((inside, override.flag) for inside in _inside(override.value, override.location))
        flags.add(override.location)
    return Document(document.name, document.folder, values, places, document.keys, frozenset(flags))


def _inside(value: Any, location: Location) -> Iterator[Location]:
    yield location
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield from _inside(child, (*location, key))


def validate(model: type[ModelT], document: Document) -> ModelT:
    """The document as a validated model. Raises ConfigError naming every place that is wrong."""
    try:
        # as JSON text, because strict mode then still takes lists for tuples and text for paths
        return model.model_validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        problems = [_problem(model, document, dict(details)) for details in error.errors(include_url=False)]
    if len(problems) == 1:
        raise problems[0]
    lines = "\n".join(str(problem) for problem in problems)
    raise ConfigError(f"{document.name}: {len(problems)} errors\n{lines}")


def _problem(model: type[BaseModel], document: Document, details: dict[str, Any]) -> ConfigError:
    location, kind = tuple(details["loc"]), details["type"]
    last = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        place = document.keys.get(location) or document.place(location)
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(last, known, n=1)
        return ConfigError(
            f"{place}: unknown key '{last}'",
            expected="one of " + ", ".join(known) if known else None,
            found=f"'{last}'",
            do=f"did you mean '{near[0]}'?" if near else None,
        )
    if kind == "missing":
        return ConfigError(f"{document.place(location)}: missing key '{last}'", expected=f"'{last}: ...'")
    dotted = ".".join(str(part) for part in location) or "the file"
    found = None if _PRIVATE & set(location) else _shown(details["input"])
    message = str(details["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        place = document.place(location)
        named = "" if place.endswith(f"--{dotted}") else f"{dotted}: "
        return ConfigError(f"{place}: {named}{message}", found=found)
    return ConfigError(
        f"{document.place(location)}: wrong value of '{dotted}'",
        expected=message.removeprefix("Input should be "),
        found=found,
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    models = [model]
    for part in location:
        inner = [m.model_fields[str(part)].annotation for m in models if part in m.model_fields]
        models = [found for annotation in inner for found in _models_in(annotation)] if inner else models
    return [name for found in models for name in found.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def write_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, in the order given; ``parse_yaml`` reads it back equal."""
    yaml = YAML()
    yaml.width = 110
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar(_TAG + "null", "null"))
    yaml.representer.add_representer(str, _represent_text)
    stream = StringIO()
    yaml.dump(_laid_out(values), stream)
    return stream.getvalue()


def _represent_text(representer: Any, text: str) -> Any:
    """As ruamel does, but quoted where it begins like a key or a value on one line with others (``?``, ``:``)."""
    return representer.represent_scalar(
        _TAG + "str", text, style='"' if text.startswith(("?", ":")) else None
    )


def _laid_out(value: Any) -> Any:
    """Mappings as blocks, lists on one line."""
    if isinstance(value, Mapping):
        return CommentedMap((key, _laid_out(child)) for key, child in value.items())
    if isinstance(value, (list, tuple)):
        line = CommentedSeq(_laid_out(child) for child in value)
        line.fa.set_flow_style()
        return line
    return value
