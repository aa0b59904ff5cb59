"""The files of the search space: what ships, and every way of getting one wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opadapt.errors import ConfigError, ProgramError
from opadapt.ir.instructions import TABLE
from opadapt.ir.text import parse_program
from opadapt.search.expression import evaluate
from opadapt.search.pattern import parse_condition, parse_expression, parse_pattern
from opadapt.search.rewrite import apply, matches, variants
from opadapt.search.space import load_space

SPACE = """instructions: [relu, add]
choices:
  rank: [2, 4]
rules:
  - rules.yaml
"""

RULES = """rules:
  - name: narrow
    source: "a test"
    match: |
      %k = param shape=(?c,?o)
      %y = contract %x %k einsum="nk,km->nm"
      return %y
    choose:
      r: rank
    let:
      s: "?r * 2"
    where: ["?r < ?c", "?s > 0"]
    replace: |
      %a = param shape=(?c,?r)
      %z = contract %x %a einsum="nk,km->nm"
      %b = param shape=(?r,?o)
      %t = contract %z %b einsum="nk,km->nm"
      return %t
    init:
      "a, b": 'factor(%k, "co->cr,ro", rank=?r)'
"""


def write(folder: Path, rules: str = RULES, space: str = SPACE) -> Path:
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    path = folder / "space.yaml"
    path.write_text(space, encoding="utf-8")
    return path


def test_the_shipped_space() -> None:
    space = load_space()
    assert load_space("default") == space
    assert len(space.rules) > 40
    assert len({rule.name for rule in space.rules}) == len(space.rules)
    assert space.instructions <= set(TABLE)
    assert space.seeds == tuple(rule.name for rule in space.rules)
    assert all(rule.source for rule in space.rules)
    assert all(values and min(values) >= 1 for values in space.choices.values())


def test_the_exact_part_of_the_shipped_space() -> None:
    exact = load_space().exact()
    assert exact.rules
    assert all(rule.exact for rule in exact.rules)
    assert set(exact.seeds) == {rule.name for rule in exact.rules}


def test_a_space_by_path(tmp_path: Path) -> None:
    space = load_space(write(tmp_path))
    (rule,) = space.rules
    program = parse_program(
        "program(f32[N,8]) -> f32[N,6]\n"
        '%1 = param name="w" shape=(8,6)\n'
        '%2 = contract %0 %1 einsum="nk,km->nm"\n'
        "return %2"
    )
    assert [dict(choice) for _, choice in variants(rule, program)] == [{"r": 2}, {"r": 4}]
    assert space.rule("narrow") is rule
    with pytest.raises(ConfigError, match="no such rule"):
        space.rule("wide")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("    source:", "    sauce: 1\n    source:", 3, "sauce"),
        ('"a test"', "7", 3, "source"),
        ("name: narrow", "name: Narrow!", 2, "name"),
        ("%y = contract %x %k", "%y = contract %x", 6, "contract: operands"),
        ("%y = contract %x %k", "%y = convolve %x %k", 6, "no such instruction"),
        ("shape=(?c,?o)", "shape=(?c*2,?o)", 2, "an attribute to compute"),
        ("shape=(?c,?o)", "size=(?c,?o)", 5, "param: attributes"),
        ("shape=(?c,?o)", "shape=(?c,?o", 5, "does not parse"),
        ("      return %y", "      %q = relu %y\n      return %y", 2, "do not lead to the output"),
        ("      return %y", "      %y = relu %k\n      return %y", 7, "made twice"),
        ("r: rank", "r: ranks", 9, "no such choices"),
        ("r: rank", 'r: ["?c //"]', 9, "does not parse"),
        ("r: rank", 'r: ["?q // 2"]', 2, "metavariables that nothing binds"),
        ("?r * 2", "?q * 2", 2, "metavariables that nothing binds"),
        ("?r * 2", "sum(?r, 2)", 2, "no such function"),
        ("?r < ?c", "?r << ?c", 12, "does not parse"),
        ("?r < ?c", "?r", 12, "no condition"),
        ("?r < ?c", "enough(%x)", 12, "no such property"),
        ("?r < ?c", "computed(%nowhere)", 2, "does not name"),
        ("%z = contract %x %a", "%z = contract %w %a", 2, "does not name"),
        ("%z = contract %x %a", "%k = contract %x %a", 2, "has already"),
        ("%z = contract %x %a", "%z = chain %x %a", 15, "one operand"),
        ("%t = contract %z %b einsum", "%t = contract %z %b letters", 17, "attributes"),
        ('%t = contract %z %b einsum="nk,km->nm"', "%t = contract %z %b", 2, "replace: attributes"),
        ("%b = param shape", '%b = param name="b" shape', 2, "replace: attributes"),
        ("shape=(?r,?o)", "shape=(?r,?p)", 2, "metavariables that nothing binds"),
        ('"a, b"', "a", 2, "one value per new parameter"),
        ("factor(", "eval(", 2, "no such function"),
        ("factor(%k", "factor(%w", 2, "does not name"),
        ("rank=?r", "ranks=?r", 2, "arguments of factor"),
        ("'factor(%k, \"co->cr,ro\", rank=?r)'", "'?r'", 20, "not a call"),
        ("'factor(%k, \"co->cr,ro\", rank=?r)'", "'__import__(\"os\")'", 20, "does not parse"),
    ],
)
def test_errors_say_file_and_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in RULES
    with pytest.raises(ConfigError) as caught:
        load_space(write(tmp_path, RULES.replace(old, new, 1)))
    assert str(caught.value).startswith(f"{tmp_path / 'rules.yaml'}:{line}:")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("choices:", "choses:", 2, "did you mean 'choices'"),
        ("[relu, add]", "[relu, conv]", 1, "no such instruction"),
        ("- rules.yaml", "- missing.yaml", 5, "no such rule file"),
        ("- rules.yaml", "- rules.yaml\n  - rules.yaml", 6, "two rules of one name"),
        ("rules:", "seeds: [wide]\nrules:", 4, "no such rule"),
        ("[2, 4]", '[2, "4"]', 3, "rank"),
    ],
)
def test_errors_of_the_space_file(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(write(tmp_path, space=SPACE.replace(old, new, 1)))
    assert str(caught.value).startswith(f"{tmp_path / 'space.yaml'}:{line}:")
    assert message in str(caught.value)


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(ConfigError) as caught:
        load_space("defualt")
    assert "default.yaml" in str(caught.value)


def test_seeds_may_be_listed(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, space=SPACE + "seeds: [narrow]\n"))
    assert space.seeds == ("narrow",)


# ---- the language ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 // 2 - 7 % 2", 2),
        ("8 - 2 - 1", 5),
        ("-?c + 10", 6),
        ("min(?c, 3) + max(1, 2, 5)", 8),
        ("(?c, 2*?c, (1,))", (4, 8, (1,))),
        ("()", ()),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("-inf", float("-inf")),
        ("N", "N"),
        ('"nk,km->nm"', "nk,km->nm"),
    ],
)
def test_expressions(text: str, value: object) -> None:
    assert evaluate(parse_expression(text), {"c": 4}) == value


@pytest.mark.parametrize("text", ["1 // 0", "1 % (2 - 2)", "?q", "%x", "0.5 * 2", "slice(1, 2)", "N + 1"])
def test_expressions_that_have_no_value(text: str) -> None:
    with pytest.raises(ProgramError):
        evaluate(parse_expression(text), {"c": 4})


@pytest.mark.parametrize(
    "text", ["", "1 +", "a.b", "x[0]", "lambda: 0", "1; 2", "2 ** 3", "1 / 2", "%3", "c"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ProgramError, match="line 1, column"):
        parse_expression(text)


def test_conditions_print_as_written() -> None:
    for text in ("?c > 1", "computed(%x, %y)"):
        assert str(parse_condition(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%a = relu %b\n%b = relu %x\nreturn %a", "before it is made"),
        ("%a = param? shape=(1,)\nreturn %a", "cannot be optional"),
        ("%a = ?act? %x\nreturn %a", "not optional"),
        ("%a = chain %x %y\nreturn %a", "one operand"),
        ("%a = relu %x", "does not parse"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        parse_pattern(text)


def test_an_init_that_gives_another_shape_is_an_error(tmp_path: Path) -> None:
    (rule,) = load_space(write(tmp_path, RULES.replace("co->cr,ro", "co->rc,ro"))).rules
    program = parse_program(
        "program(f32[N,8]) -> f32[N,6]\n"
        '%1 = param name="w" shape=(8,6)\n'
        '%2 = contract %0 %1 einsum="nk,km->nm"\n'
        "return %2"
    )
    (match,) = matches(rule, program)
    binding = {"w": np.ones((8, 6), np.float32)}
    with pytest.raises(ProgramError, match="param 'a'"):
        apply(rule, program, match, {"r": 2}, binding, np.random.default_rng(0))
