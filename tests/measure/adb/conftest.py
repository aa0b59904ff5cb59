"""A pretended adb server with one phone; no test looks for the developer's own server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from phone import FakeAdbServer, Phone

from opadapt.model.graph import Model
from opadapt.model.save import at_batch


@pytest.fixture(autouse=True)
def no_real_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test starts a server, or looks for one, where the developer's own may be."""
    for name in ("ANDROID_SERIAL", "ANDROID_ADB_SERVER_HOST", "ANDROID_ADB_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ADBUTILS_ADB_PATH", "/bin/false")


@pytest.fixture
def adb(tmp_path: Path) -> Iterator[FakeAdbServer]:
    server = FakeAdbServer()
    server.phones["one"] = Phone(tmp_path / "one")
    with server.running():
        yield server


@pytest.fixture
def model(cnn: Callable[..., Model]) -> bytes:
    return at_batch(cnn(8, 8), 1).SerializeToString()
