"""Device files: what ships is valid, whose file wins, and what is wrong is refused with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from opadapt.errors import ConfigError, DeviceError
from opadapt.measure import opening
from opadapt.measure.agent_device import AgentDevice
from opadapt.measure.facts import Caches, Facts, known_devices, load_facts, user_folder
from opadapt.measure.local import LocalDevice
from opadapt.measure.null import NullDevice
from opadapt.measure.opening import find_device, open_device
from opadapt.resources import shipped_names
from opadapt.yamlfile import read_yaml

SHIPPED = [name.removesuffix(".yaml") for name in shipped_names("devices")]
PROMISED = {
    *("local", "null", "rpi3", "rpi4", "rpi5", "jetson-nano", "jetson-orin-nano", "redmi-note-7s"),
    *("generic-aarch64", "generic-x86"),
}
# keys that state nothing about the hardware or its software, so that nobody need have said it
OWN = {"name", "description", "transport", "experimental"}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Path]:
    """Folders of the test's own, empty: where a name is looked for, first to last but for the shipped ones."""
    here, config = tmp_path / "here", tmp_path / "config"
    found = {"here": here, "devices": here / "devices", "user": config / "opadapt" / "devices"}
    for folder in found.values():
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    return found


def write(folder: Path, name: str, text: str = "", description: str = "x") -> Path:
    """A device file; ``text``: lines after the four required ones, or the whole if it names a transport."""
    head = f"name: {name}\ndescription: {description}\n"
    rest = text if "transport" in text else "transport: local\narch: host\n" + text
    path = folder / f"{name}.yaml"
    path.write_text(head + rest)
    return path


def test_what_is_promised_ships() -> None:
    assert set(SHIPPED) == PROMISED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_valid_and_named_after_itself(name: str) -> None:
    facts = load_facts(name)
    assert facts.name == name
    assert facts.arch in ("host", "x86_64", "aarch64")
    assert (facts.transport in ("ssh", "adb")) == (facts.arch != "host")  # how and what it is go together
    if facts.transport == "ssh":
        assert facts.triple == f"{facts.arch}-linux-gnu"
        assert all(tag.endswith(f"_{facts.arch}") for tag in facts.wheel_platforms) and facts.wheel_platforms
    if facts.cool is not None:  # it has to help before the board throttles, and to be seen by something
        assert facts.max_temperature_c is not None and facts.cool.start_above_c < facts.max_temperature_c
        assert any(source.kind in ("zone", "hwmon") for source in facts.thermal)


@pytest.mark.parametrize("name", sorted(PROMISED - {"local", "null"}))
def test_every_fact_about_a_board_has_a_comment(name: str) -> None:
    """Its source, in the lines above it or, for a list, above its first entry, which is indented."""
    path = known_devices()[name]
    lines, document = path.read_text().splitlines(), read_yaml(path)
    for key in document.values.keys() - OWN:
        number = int(document.keys[(key,)].split(":")[-2])  # counted from 1: the line below it in ``lines``
        below = lines[number] if number < len(lines) else ""
        assert lines[number - 2].startswith("#") or below.startswith("  #"), f"{path}:{number}: {key}"


def test_the_pi_4_knows_the_onnxruntime_that_kills_it() -> None:
    bad = load_facts("rpi4").bad_version("1.21.0")
    assert bad is not None and "illegal instruction" in bad.reason and "1.22" in bad.fix
    assert load_facts("rpi4").bad_version("1.22.0") is None
    assert load_facts("rpi4").bad_version("1.21.1") is None
    assert load_facts("rpi4").bad_version("no version") is None


def test_power_is_claimed_only_where_there_is_a_sensor() -> None:
    assert load_facts("rpi4").power == () == load_facts("rpi5").power
    (rail,) = load_facts("jetson-orin-nano").power
    assert (rail.kind, rail.match, rail.channel) == ("hwmon", "ina3221", 1)
    assert [source.kind for source in load_facts("generic-x86").power] == ["rapl"]


def test_big_cores_are_pinned_and_the_phone_is_experimental() -> None:
    phone = load_facts("redmi-note-7s")
    assert phone.pin_cores == (4, 5, 6, 7) and phone.experimental and phone.transport == "adb"
    assert [name for name in SHIPPED if load_facts(name).experimental] == ["redmi-note-7s"]


@pytest.mark.parametrize("name", ["rpi3", "rpi4", "rpi5", "jetson-nano", "jetson-orin-nano"])
def test_boards_of_like_cores_are_pinned_to_one_that_is_not_the_first(name: str) -> None:
    facts = load_facts(name)
    (core,) = facts.pin_cores
    assert facts.cores is not None and 0 < core < facts.cores


def test_a_pi_3_is_measured_up_to_where_all_of_its_kind_throttle() -> None:
    facts = load_facts("rpi3")
    assert facts.cool is not None and (facts.max_temperature_c, facts.cool.start_above_c) == (80, 70)
    assert facts.timeout_s == 1200 and load_facts("rpi4").timeout_s is None


@pytest.mark.parametrize("host", ["pi:hunter2@10.0.0.7", "[pi, hunter2]", "{pi: hunter2}"])
def test_a_password_is_refused_and_not_shown_again(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_facts(str(write(tmp_path, "mine", f"host: {host}\n")))
    assert "mine.yaml:5:7: " in str(error.value)
    assert "hunter2" not in str(error.value) and "found" not in str(error.value)


def test_names_are_looked_up_here_then_in_the_users_folder_then_among_the_shipped(
    places: Mapping[str, Path],
) -> None:
    """Each file put in front of the others wins, and ``known_devices`` names the same one."""
    assert "Raspberry Pi 4" in load_facts("rpi4").description
    for place in ("user", "devices", "here"):
        path = write(places[place], "rpi4", description=place)
        assert load_facts("rpi4").description == place
        assert known_devices()["rpi4"] == path


def test_a_users_own_device_is_known_and_listed(places: Mapping[str, Path]) -> None:
    for place, name in (("here", "a1"), ("devices", "b2"), ("user", "c3")):
        write(places[place], name)
        assert load_facts(name).name == name
    known = known_devices()
    assert {"a1", "b2", "c3"} | PROMISED == set(known)
    assert list(known) == sorted(known)


def test_without_xdg_config_home_it_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/folder"):  # the specification: a relative path is to be ignored
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert user_folder() == tmp_path / "home" / ".config" / "opadapt" / "devices"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_folder() == tmp_path / "home" / ".config" / "opadapt" / "devices"


def test_an_experiment_of_the_same_name_is_no_device_file(places: Mapping[str, Path]) -> None:
    (places["here"] / "rpi4.yaml").write_text("model: net.onnx\ndevice: rpi4\ntiming:\n  arch: x\n")
    assert load_facts("rpi4").transport == "ssh"
    (places["here"] / "mine.yaml").write_text("model: net.onnx\n")
    assert "mine" not in known_devices()


@pytest.mark.parametrize("place", ["here", "devices", "user"])
def test_a_broken_file_of_ones_own_is_not_passed_over(place: str, places: Mapping[str, Path]) -> None:
    write(places[place], "rpi4", "cores: [4\n")
    with pytest.raises(ConfigError, match=r"rpi4\.yaml:\d+:\d+: not valid YAML"):
        load_facts("rpi4")
    assert "rpi4" in known_devices()


def test_a_file_found_by_name_must_bear_that_name(places: Mapping[str, Path]) -> None:
    """Its name is the host it is looked for at: a copy that kept the old one would measure another board."""
    path = write(places["user"], "lab")
    path.write_text(path.read_text().replace("name: lab", "name: rpi4"))
    with pytest.raises(ConfigError) as error:
        load_facts("lab")
    assert "lab.yaml:1:7" in str(error.value) and "'lab'" in str(error.value) and "'rpi4'" in str(error.value)
    assert load_facts(str(path)).name == "rpi4"  # by its path it is what it says


def test_an_unknown_device_is_refused_with_the_known_ones(places: Mapping[str, Path]) -> None:
    write(places["user"], "mine")
    with pytest.raises(ConfigError) as error:
        open_device("rpi99")
    assert ", ".join(sorted({"mine", *PROMISED})) in str(error.value)
    assert "no device 'rpi99'" in str(error.value) and str(places["user"] / "rpi99.yaml") in str(error.value)


@pytest.mark.parametrize("name", ["../rpi4", "devices/rpi4", "", ".", "rpi4\0", "-rpi4", "rpi4/"])
def test_a_name_that_is_no_word_is_looked_up_nowhere(name: str, places: Mapping[str, Path]) -> None:
    write(places["here"], "rpi4")
    with pytest.raises(ConfigError, match="no device"):
        load_facts(name)


WRONG = {  # lines after the four required ones -> where and what the refusal says
    "core: 4\n": ("5:1", "unknown key 'core'"),
    "cores: 0\n": ("5:8", "'cores'"),
    "cores: four\n": ("5:8", "'cores'"),
    "caches: {l1_kib: 32}\n": ("5:10", "unknown key 'l1_kib'"),
    "caches: {l1d_kib: 0}\n": ("5:19", "'caches.l1d_kib'"),
    "cores: 4\npin_cores: [2, 4]\n": ("6:16", "cores from 0 to 3"),
    "pin_cores: [-1]\n": ("5:13", "'pin_cores.0'"),
    "memory_bandwidth_gb_s: -1\n": ("5:24", "memory_bandwidth_gb_s"),
    "bad_onnxruntime: [{specifier: about 1.2, reason: x, fix: y}]\n": ("5:31", "PEP 440"),
    "bad_onnxruntime: [{specifier: ==1.2, reason: x}]\n": ("5:19", "missing key 'fix'"),
    "thermal: [/sys/class/thermal]\n": ("5:11", "thermal.0"),
    "thermal: [{kind: oven}]\n": ("5:18", "'zone', 'vcgencmd', 'hwmon' or 'x86_counter'"),
    "cool: {start_above_c: 60, resume_below_c: 70}\n": ("5:7", "must not be above"),
    "power: [{kind: hwmon}]\n": ("5:9", "missing key 'match'"),
    "power: [{kind: rapl, match: package-0, channel: 1}]\n": ("5:9", "no channel"),
    "max_retries: -1\n": ("5:14", "'max_retries'"),
    "host: pi@a b\n": ("5:7", "user@"),
    "transport: carrier-pigeon\narch: host\n": ("3:12", "'null', 'local', 'ssh' or 'adb'"),
    "transport: 'null'\narch: host\n": ("3:12", "a null device, and no other, has a 'cost'"),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_refused_with_its_place(text: str, tmp_path: Path) -> None:
    place, says = WRONG[text]
    with pytest.raises(ConfigError) as error:
        load_facts(str(write(tmp_path, "mine", text)))
    assert f"mine.yaml:{place}: " in str(error.value) and says in str(error.value)


RATES = ("overhead_s", "dense_macs_per_s", "grouped_macs_per_s", "depthwise_macs_per_s", "bytes_per_s")
COST = "{" + ", ".join(f"{rate}: 1.0" for rate in RATES) + "}"


def test_a_cost_model_belongs_to_a_null_device_alone(tmp_path: Path) -> None:
    null = write(tmp_path, "mine", f"transport: 'null'\narch: host\ncost: {COST}\n")
    assert load_facts(str(null)).cost is not None
    with pytest.raises(ConfigError) as error:
        load_facts(str(write(tmp_path, "mine", f"cost: {COST}\n")))
    assert "mine.yaml:5:7: " in str(error.value) and "transport 'local' with 'cost'" in str(error.value)


def test_a_file_by_its_path_says_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "host: pi@10.0.0.7:2222\nextensions: [fp, asimd]\ncores: 6\npin_cores: [4, 5]\n"
        "caches: {l1d_kib: 32, l2_kib: 1024}\nmemory_bandwidth_gb_s: 17\npython: python3.11\n"
        "wheel_platforms: [manylinux_2_28_aarch64]\nthermal:\n  - kind: zone\n  - {kind: hwmon, match: cpu*}\n"
        "cool: {start_above_c: 70, resume_below_c: 60}\npower: [{kind: hwmon, match: ina226}]\nmax_retries: 5\n"
        "bad_onnxruntime: [{specifier: '>=1.21,<1.22', reason: x, fix: y}]\nexperimental: true\n"
    )
    path = write(tmp_path, "mine", "transport: ssh\narch: aarch64\n" + text)
    facts = load_facts(str(path))
    assert (facts.host, facts.cores, facts.pin_cores) == ("pi@10.0.0.7:2222", 6, (4, 5))
    assert facts.caches == Caches(l1d_kib=32, l2_kib=1024) and facts.caches.l3_kib is None
    assert [(source.kind, source.match) for source in facts.thermal] == [("zone", "*"), ("hwmon", "cpu*")]
    assert facts.cool is not None and facts.cool.wait_s == 120
    assert facts.bad_version("1.21.1") is not None and facts.bad_version("1.21.0rc1") is None
    assert (facts.max_retries, facts.experimental, facts.python) == (5, True, "python3.11")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_facts("~/mine.yaml") == facts
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_facts("absent.yaml")


def test_a_version_before_the_bad_one_in_its_own_series_counts() -> None:
    """A pre-release of a bad series is bad, too, where the specifier covers it."""
    bad = Facts.model_validate(
        {
            **{"name": "x", "description": "x", "transport": "ssh", "arch": "aarch64"},
            "bad_onnxruntime": [{"specifier": "<1.22", "reason": "x", "fix": "y"}],
        }
    )
    assert bad.bad_version("1.22.0.dev1") is None and bad.bad_version("1.21.0.dev1") is not None


def test_open_device_gives_the_kind_that_the_facts_say() -> None:
    assert isinstance(open_device("null", 1), NullDevice)
    local = open_device("local", 2)  # nothing is started before it is used
    assert isinstance(local, LocalDevice) and local.threads == 2


@pytest.mark.parametrize(
    ("device", "host", "hosts"),
    [
        ("rpi4", None, ("rpi4",)),
        ("rpi4@shelf", None, ("shelf",)),
        ("rpi4", "pi@10.0.0.7", ("pi@10.0.0.7",)),
        ("rpi4@a,b", None, ("a", "b")),
        ("mine", None, ("pi@bench",)),
        ("mine@a", None, ("a",)),
        ("redmi-note-7s", None, ()),  # the one phone that is plugged in
        ("redmi-note-7s@0123ABCD", None, ("0123ABCD",)),
        ("null", None, ()),
    ],
)
def test_which_hosts_a_device_is_looked_for_at(
    device: str, host: str | None, hosts: tuple[str, ...], places: Mapping[str, Path]
) -> None:
    write(places["user"], "mine", "transport: ssh\narch: aarch64\nhost: pi@bench\n")
    address, facts = find_device(device, host)
    assert address.hosts == hosts and facts.name == address.type


@pytest.mark.parametrize(("device", "host"), [("local@a", None), ("null", "a"), ("local", "127.0.0.1")])
def test_this_machine_has_no_host(device: str, host: str | None) -> None:
    with pytest.raises(ConfigError, match="is on this machine"):
        open_device(device, 1, host)


class _Silent:
    """A transport that is never used; it keeps what it was made for."""

    def __init__(self, host: str, facts: Facts) -> None:
        self.host, self.facts = host, facts


def test_one_board_is_a_device_and_several_are_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Silent] = []

    def imported(place: str) -> object:
        if not re.search("Transport$", place):
            return original(place)
        return lambda host, facts: made.append(_Silent(host, facts)) or made[-1]

    original = opening._imported
    monkeypatch.setattr(opening, "_imported", imported)
    one = open_device("rpi4", 2, "pi@10.0.0.7")
    assert isinstance(one, AgentDevice) and (one.facts.name, one.threads) == ("rpi4", 2)
    fleet = open_device("rpi4@a,b", 3)
    assert type(fleet).__name__ == "FleetDevice" and fleet.threads == 3
    assert [(t.host, t.facts.name) for t in made] == [("pi@10.0.0.7", "rpi4"), ("a", "rpi4"), ("b", "rpi4")]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"opadapt\.measure\.absent cannot be imported"):
        opening._imported("opadapt.measure.absent:Thing")
