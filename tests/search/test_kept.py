"""What was computed is kept while there is room."""

from __future__ import annotations

import numpy as np
import pytest

from opadapt.search.kept import Kept, fingerprint

Array = np.ndarray


def asked(kept: Kept, keys: str) -> str:
    """The keys of those that had to be made, in order."""
    made: list[str] = []

    def make(key: str) -> tuple[Array]:
        made.append(key)
        return (np.full(10, ord(key), np.uint8),)

    for key in keys:
        assert (kept(key, lambda key=key: make(key))[0] == ord(key)).all()
    return "".join(made)


@pytest.mark.parametrize(
    ("room", "keys", "made"),
    [
        (30, "abcabcabc", "abc"),
        (29, "ababab", "ab"),
        (20, "abcabc", "abcabc"),
        (20, "abacab", "abcb"),  # b was not asked for the longest when c came
        (5, "aab", "ab"),  # what is larger than the room is kept until the next one
    ],
)
def test_what_was_not_asked_for_the_longest_goes_first(room: int, keys: str, made: str) -> None:
    assert asked(Kept(room), keys) == made


def test_fingerprints_tell_shapes_and_elements() -> None:
    x = np.arange(6.0).reshape(2, 3)
    same = [x, x.copy(), np.asfortranarray(x), x[::-1][::-1]]
    other = [x.reshape(3, 2), x + 1, x.astype(np.float32), x.T, np.zeros((2, 3))]
    assert len({fingerprint(a) for a in same}) == 1
    assert len({fingerprint(a) for a in [x, *other]}) == 1 + len(other)
    assert fingerprint(x, x + 1) != fingerprint(x + 1, x)
