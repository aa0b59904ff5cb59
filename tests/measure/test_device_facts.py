"""Device files: what ships is valid, what is wrong is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from opadapt.errors import ConfigError
from opadapt.measure.facts import load_facts
from opadapt.measure.local import LocalDevice
from opadapt.measure.null import NullDevice
from opadapt.measure.opening import open_device
from opadapt.resources import shipped_names


def test_every_shipped_device_file_is_valid_and_named_after_itself() -> None:
    names = [name.removesuffix(".yaml") for name in shipped_names("devices")]
    assert {"local", "null"} <= set(names)
    assert [load_facts(name).name for name in names] == names


def test_open_device_gives_the_kind_that_the_facts_say() -> None:
    assert isinstance(open_device("null", 1), NullDevice)
    local = open_device("local", 2)  # nothing is started before it is used
    assert isinstance(local, LocalDevice) and local.threads == 2


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        open_device("rpi99")
    assert "local, null" in str(error.value) and "rpi99" in str(error.value)


def test_an_unknown_key_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ndescription: x\ntransport: local\narch: host\ncore: 4\n")
    with pytest.raises(ConfigError) as error:
        load_facts(str(file))
    assert "mine.yaml:5:1" in str(error.value) and "'core'" in str(error.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ndescription: x\ntransport: local\narch: host\ncores: 4\n")
    assert load_facts(str(file)).cores == 4


RATES = ("overhead_s", "dense_macs_per_s", "grouped_macs_per_s", "depthwise_macs_per_s", "bytes_per_s")
COST = "{" + ", ".join(f"{rate}: 1.0" for rate in RATES) + "}"


@pytest.mark.parametrize("text", ["transport: 'null'\n", f"transport: local\ncost: {COST}\n"])
def test_a_cost_model_belongs_to_a_null_device_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ndescription: x\narch: host\n" + text)
    with pytest.raises(ConfigError, match="cost"):
        load_facts(str(file))
