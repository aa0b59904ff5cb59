"""A measuring lock that cannot be made is refused with its reason."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from opadapt.errors import DeviceError
from opadapt.measure.lock import MeasuringLock


@pytest.mark.parametrize("kind", ["quiet", "busy"])
def test_a_lock_folder_that_cannot_be_made(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    lock = MeasuringLock(tmp_path / "file" / "lock")
    with pytest.raises(DeviceError, match="measuring lock") as error, getattr(lock, kind)():
        pytest.fail("locked")
    assert str(tmp_path) in str(error.value.found) and "TMPDIR" in str(error.value.do)


def test_a_temporary_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="measuring lock"):
        MeasuringLock()
