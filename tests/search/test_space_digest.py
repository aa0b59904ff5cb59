"""The digest of a search space: of what its files say, rule files included."""

from __future__ import annotations

from pathlib import Path

import pytest

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
      q: [1, 2]
    where: ["?r < ?c", "?q < ?r"]
    replace: |
      %a = param shape=(?c,?r)
      %z = contract %x %a einsum="nk,km->nm"
      %b = param shape=(?r,?o)
      %t = contract %z %b einsum="nk,km->nm"
      return %t
    init:
      "a, b": 'factor(%k, "co->cr,ro", rank=?r)'
"""


def digest(folder: Path, space: str = SPACE, rules: str = RULES) -> str:
    (folder / "rules.yaml").write_text(rules, encoding="utf-8")
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    return load_space(folder / "space.yaml").digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[relu, add]", "[relu]"),
        ("[2, 4]", "[4, 2]"),
        ("?q < ?r", "?q <= ?r"),
        ("[1, 2]", "[1, 3]"),
        ("      r: rank\n      q: [1, 2]\n", "      q: [1, 2]\n      r: rank\n"),
    ],
)
def test_a_change_in_any_of_the_files_shows(tmp_path: Path, old: str, new: str) -> None:
    assert (SPACE + RULES).count(old) == 1
    assert digest(tmp_path) != digest(tmp_path, SPACE.replace(old, new), RULES.replace(old, new))


def test_comments_and_places_do_not(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    assert digest(tmp_path) == digest(tmp_path / "moved", f"# moved\n{SPACE}", f"{RULES}# the end\n")


def test_the_exact_part_is_of_the_same_files() -> None:
    space = load_space()
    assert space.exact().digest == space.digest != load_space("quick").digest
