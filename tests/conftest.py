"""Shared fixtures: where the development models and data lie, if they lie anywhere."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("OPADAPT_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs, as CI may be one, with Ctrl-C ignored, and child processes inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, those with the most before the others, so that in the end no worker waits long."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models; the test is skipped where it is absent."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip(f"no real models at {folder} (set OPADAPT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test is skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set OPADAPT_SHARED)")
    return folder
