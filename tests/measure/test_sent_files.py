"""Which files stay in an agent's folder, and which go."""

from __future__ import annotations

from opadapt.measure.sent import Sent


def work(sent: Sent, sizes: dict[str, int], base: str | None = None) -> list[str]:
    """A piece of work with these files; what was removed after it."""
    sent.ask_for(sizes)
    for digest, size in sizes.items():
        sent.put(digest, size)
    return sorted(sent.finish(sizes, [base] if base else []))


def test_candidates_go_and_the_base_stays() -> None:
    sent = Sent()
    assert work(sent, {"base": 1, "one": 1, "two": 1}, "base") == ["one", "two"]
    assert sent.has("base") and not sent.has("one")
    assert work(sent, {"base": 1, "three": 1}, "base") == ["three"]


def test_what_is_asked_for_twice_stays() -> None:
    sent = Sent()
    assert work(sent, {"model": 1}) == ["model"]
    assert work(sent, {"model": 1}) == [] and sent.has("model")


def test_a_second_try_of_the_same_work_is_no_second_use() -> None:
    sent = Sent()
    sent.ask_for(["model"])
    for _ in range(2):
        sent.start({})
        sent.put("model", 1)
        gone = sent.finish(["model"], [])
    assert gone == ["model"]


def test_the_least_recently_used_go_above_the_limit() -> None:
    sent = Sent(limit=10)
    for name in ("a", "b"):
        work(sent, {name: 4}, name)
    work(sent, {"a": 4}, "a")
    assert work(sent, {"c": 4}, "c") == ["b"]
    assert sent.has("a") and sent.has("c")
    assert work(sent, {"huge": 40}, "huge") == ["a", "c"]  # what is in use stays, whatever its size
    assert sent.has("huge")


def test_a_new_agent_has_what_it_says() -> None:
    sent = Sent()
    work(sent, {"base": 1}, "base")
    sent.start({})
    assert not sent.has("base")
    sent.start({"base": 1})
    assert sent.has("base")
