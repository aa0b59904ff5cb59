"""YAML files: every mistake is told with file, line, column, what was expected and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from opadapt.errors import ConfigError
from opadapt.yamlfile import (
    MAX_BYTES,
    Override,
    parse_yaml,
    read_yaml,
    validate,
    with_overrides,
    write_yaml,
)


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(1, ge=1, description="n")
    sizes: tuple[float, ...] = ()


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = {}


def _error(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, parse_yaml(text, "a.yaml"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\ninner:\n  stepz: 3\n", ["a.yaml:3:3: unknown key 'stepz'", "did you mean 'steps'?"]),
        ("name: x\nmaybe: {stepz: 3}", ["a.yaml:2:9: unknown key 'stepz'", "steps, sizes", "'steps'?"]),
        ("name: x\nmany: [{}, {stepz: 3}]", ["a.yaml:2:13: unknown key 'stepz'", "'steps'?"]),
        ("name: x\nby_name: {k: {stepz: 3}}", ["a.yaml:2:15: unknown key 'stepz'", "'steps'?"]),
        ("name: x\nqqq: 1", ["a.yaml:2:1: unknown key 'qqq'", "one of name, inner, maybe"]),
        ("inner: {}\n", ["a.yaml:1:1: missing key 'name'", "expected: 'name: ...'"]),
        ("", ["a.yaml:1:1: missing key 'name'"]),
        ("name: x\ninner:\n  steps: many", ["a.yaml:3:10:", "'inner.steps'", "a valid integer", '"many"']),
        ("name: x\ninner: {steps: 0}", ["a.yaml:2:16:", "greater than or equal to 1", "found: 0"]),
        ("name: x\ninner: {steps: '3'}", ["a.yaml:2:16:", "a valid integer", 'found: "3"']),
        ("name: x\ninner: {steps: true}", ["a.yaml:2:16:", "a valid integer", "found: true"]),
        ("name: 3", ["a.yaml:1:7:", "a valid string", "found: 3"]),
        ("name: x\ninner: {sizes: [1, x]}", ["a.yaml:2:20:", "a valid number"]),
        ("name: x\ninner: 5", ["a.yaml:2:8:", "found: 5"]),
        ("name: x\nname: y", ["a.yaml:2:1: key 'name' occurs twice", "another at a.yaml:1:1"]),
        ("name: [x", ["a.yaml:1:9: not valid YAML"]),
        ("name: a: b", ["a.yaml:1:8: not valid YAML", "mapping values are not allowed"]),
        ("name: x\n\tinner: {}", ["a.yaml:2:1: not valid YAML"]),
        ("a: &a [1]\nb: *a", ["a.yaml:2:4: aliases are not allowed", "found: *a"]),
        ("name: !!python/object:os.system x", ["a.yaml:1:7: tags are not allowed"]),
        ("inner: !!set {a}", ["a.yaml:1:8: tags are not allowed"]),
        ("- 1", ["a.yaml:1:1: the top level must be a mapping", "found: a list"]),
        ("just words", ["a.yaml:1:1: the top level", "found: 'just words'"]),
        ("? [1]\n: 2", ["a.yaml:1:3: a key must be text", "found: a list"]),
        ("name: x\n---\nname: y", ["a.yaml:2:1: not valid YAML"]),
        ("a: " + "[" * 40 + "]" * 40, ["nested too deeply", "at most 32 levels"]),
        ("name: \x00", ["a.yaml: not valid YAML"]),
    ],
)
def test_mistakes(text: str, parts: list[str]) -> None:
    message = _error(text)
    for part in parts:
        assert part in message


def test_every_mistake_of_a_file_is_told_at_once() -> None:
    message = _error("nam: x\ninner:\n  steps: 0\n")
    assert message.startswith("a.yaml: 3 errors")
    for part in ("a.yaml:1:1: missing key 'name'", "a.yaml:3:10:", "a.yaml:1:1: unknown key 'nam'"):
        assert part in message


def test_numbers_are_read_as_yaml_1_2_says() -> None:
    values = parse_yaml("a: 1e-3\nb: 0o17\nc: yes\nd: 2001-01-01\ne: ~\nf: .inf\ng: 12:30\n", "a").values
    assert values == {
        "a": 1e-3,
        "b": 15,
        "c": "yes",
        "d": "2001-01-01",
        "e": None,
        "f": float("inf"),
        "g": "12:30",
    }


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, part in (("latin.yaml", "UTF-8"), ("large.yaml", "too large"), ("no.yaml", "cannot be read")):
        with pytest.raises(ConfigError) as caught:
            read_yaml(tmp_path / name)
        assert part in str(caught.value) and name in str(caught.value)


def test_flags_win_and_their_mistakes_name_the_flag() -> None:
    document = parse_yaml("name: x\ninner: {steps: 2, sizes: [1]}", "a.yaml")
    over = with_overrides(document, [Override(("inner", "steps"), 7, "--steps")])
    assert validate(Outer, over) == Outer(name="x", inner=Inner(steps=7, sizes=(1.0,)))
    assert document.values["inner"]["steps"] == 2
    wrong = with_overrides(document, [Override(("inner", "steps"), 0, "--steps")])
    with pytest.raises(ConfigError, match=r"--steps: wrong value of 'inner.steps'"):
        validate(Outer, wrong)
    made = with_overrides(document, [Override(("maybe", "steps"), 7, "--steps")])
    assert validate(Outer, made).maybe == Inner(steps=7)


_KEYS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _KEYS | st.just("1e-3")
_VALUES = st.recursive(
    _PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(_KEYS, v, max_size=3), max_leaves=6
)


@settings(deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
@example({"0": [{"?0": None}]})
@example({"0": [{"0": None, ":0": None}]})
@example({"?": ["?", "? a"]})
def test_written_values_are_read_back(values: dict[str, Any]) -> None:
    assert parse_yaml(write_yaml(values), "a.yaml").values == values
