"""The search space as files: rewrite rules, the instructions that may be used, and the choices.

A space file lists rule files beside it. Unknown keys, names and texts that do not parse are ConfigErrors with
file and line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from opadapt.errors import ConfigError, ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.resources import shipped
from opadapt.search.expression import Call, Expr
from opadapt.search.pattern import parse_condition, parse_expression, parse_pattern
from opadapt.search.rule import Rule
from opadapt.yamlfile import Document, Location, read_yaml, validate


class SpaceFile(BaseModel):
    """A space file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instructions: list[str] = Field(description="instructions that mutations may use")
    rules: list[str] = Field(description="rule files, relative to this file")
    seeds: list[str] | None = Field(
        None, description="rules applied to the original for seeds (default: all)"
    )
    choices: dict[str, list[int]] = Field(
        default={},
        description="named lists that rules, mutations and seeds choose from; depth: percent of the equal parts of a "
        "stage that a seed keeps",
    )


class RuleText(BaseModel):
    """One rule of a rule file, as text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="the rule's name, unique in the space")
    source: str = Field(description="where it comes from: paper and section")
    exact: bool = Field(False, description="whether the result is equal up to float rounding")
    match: str = Field(description="a pattern program, or the name of one of the file's patterns")
    where: list[str] = Field(default=[], description="conditions that must hold")
    choose: dict[str, str | list[int | str]] = Field(
        default={}, description="free choices, enumerated in order"
    )
    let: dict[str, int | str] = Field(default={}, description="further integers by name")
    replace: str = Field(description="the program that takes the pattern's place")
    init: dict[str, str] = Field(default={}, description="new parameters and how they come from matched ones")


class RuleFile(BaseModel):
    """A rule file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patterns: dict[str, str] = Field(default={}, description="patterns that several rules match, by name")
    rules: list[RuleText]


@dataclass(frozen=True)
class Space:
    """What the search may build. ``digest``: of what the files say (sha256, hex), comments aside."""

    rules: tuple[Rule, ...]
    instructions: frozenset[str]
    seeds: tuple[str, ...]
    choices: Mapping[str, tuple[int, ...]]
    digest: str

    def rule(self, name: str) -> Rule:
        """The rule of a name. Raises ConfigError."""
        for rule in self.rules:
            if rule.name == name:
                return rule
        raise ConfigError("no such rule", expected=", ".join(r.name for r in self.rules), found=name)

    def exact(self) -> Space:
        """The space of replacements that are equal up to float rounding: what is allowed without data."""
        rules = tuple(r for r in self.rules if r.exact)
        names = {r.name for r in rules}
        seeds = tuple(s for s in self.seeds if s in names)
        return replace(self, rules=rules, instructions=frozenset(), seeds=seeds, choices={})


def load_space(space: Path | str = "default") -> Space:
    """Read a space: a shipped one by name, or a file by path. Raises ConfigError with file and line."""
    named = re.fullmatch(r"[a-z][a-z0-9_]*", str(space)) is not None
    path = shipped("search_space", f"{space}.yaml") if named else Path(space)
    document = read_yaml(path)
    file = validate(SpaceFile, document)
    for i, name in enumerate(file.instructions):
        if name not in TABLE:
            raise _error(document, ("instructions", i), ProgramError("no such instruction", found=name))
    choices = {name: tuple(values) for name, values in file.choices.items()}
    rules: dict[str, Rule] = {}
    digest = hashlib.sha256(file.model_dump_json().encode())
    for i, name in enumerate(file.rules):
        try:
            text, found = _load_rules(path.parent / name, choices)
        except ConfigError as error:
            if not (path.parent / name).is_file():
                raise _error(document, ("rules", i), ProgramError("no such rule file", found=name)) from error
            raise
        digest.update(text.model_dump_json().encode())
        for rule in found:
            if rules.setdefault(rule.name, rule) is not rule:
                raise _error(document, ("rules", i), ProgramError("two rules of one name", found=rule.name))
    for i, name in enumerate(file.seeds or ()):
        if name not in rules:
            raise _error(document, ("seeds", i), ProgramError("no such rule", found=name))
    seeds = tuple(rules) if file.seeds is None else tuple(file.seeds)
    return Space(tuple(rules.values()), frozenset(file.instructions), seeds, choices, digest.hexdigest())


def _load_rules(path: Path, choices: Mapping[str, tuple[int, ...]]) -> tuple[RuleFile, list[Rule]]:
    document = read_yaml(path)
    file = validate(RuleFile, document)
    return file, [_rule(document, file, i, choices) for i in range(len(file.rules))]


def _rule(document: Document, file: RuleFile, number: int, choices: Mapping[str, tuple[int, ...]]) -> Rule:
    text = file.rules[number]
    here: Location = ("rules", number)
    where: Location = (*here, "match")
    try:
        named = text.match in file.patterns
        where = ("patterns", text.match) if named else where
        match = parse_pattern(file.patterns[text.match] if named else text.match)
        where = (*here, "replace")
        replace = parse_pattern(text.replace)
        choose: dict[str, tuple[Expr, ...]] = {}
        for name, values in text.choose.items():
            where = (*here, "choose", name)
            choose[name] = _choices(values, choices)
        let: dict[str, Expr] = {}
        for name, value in text.let.items():
            where = (*here, "let", name)
            let[name] = _expression(value)
        conditions = []
        for i, condition in enumerate(text.where):
            where = (*here, "where", i)
            conditions.append(parse_condition(condition))
        init: dict[tuple[str, ...], Call] = {}
        for names, value in text.init.items():
            where = (*here, "init", names)
            call = parse_expression(value)
            if not isinstance(call, Call):
                raise ProgramError("init: not a call", expected="a function of matched values", found=value)
            init[tuple(name.strip() for name in names.split(","))] = call
        where = here
        return Rule(text.name, text.source, text.exact, match, replace, choose, let, tuple(conditions), init)
    except ProgramError as error:
        raise _error(document, where, error, f"rule {text.name}: ") from error


def _choices(values: str | Sequence[int | str], choices: Mapping[str, tuple[int, ...]]) -> tuple[Expr, ...]:
    if isinstance(values, str):
        if values not in choices:
            raise ProgramError("no such choices in the space", expected=", ".join(choices), found=values)
        return choices[values]
    return tuple(_expression(value) for value in values)


def _expression(value: int | str) -> Expr:
    return parse_expression(value) if isinstance(value, str) else value


def _error(document: Document, where: Location, error: ProgramError, what: str = "") -> ConfigError:
    """The error with its place in the file; a line inside a block of text becomes a line of the file."""
    place, message = document.place(where), error.message
    inside = re.match(r"line (\d+)(?:, column \d+)?: ", message)
    if inside is not None:
        message = message[inside.end() :]
        if "\n" in str(document.value(where)):  # a block, whose text starts on the line after its key
            name, line, _ = place.rsplit(":", 2)
            place = f"{name}:{int(line) + int(inside[1])}"
    return ConfigError(f"{place}: {what}{message}", expected=error.expected, found=error.found, do=error.do)


__all__ = ["Rule", "Space", "load_space"]
