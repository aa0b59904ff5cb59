"""``opadapt devices`` on boards made of files: what is printed, written and refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_boards import GOOD, FakeBoard, alpine, hot_pi, jetson, pi4, pi_32_bit, python, without_python
from rich.console import Console
from typer.testing import CliRunner

from opadapt.cli import app
from opadapt.errors import DeviceError, LostDevice
from opadapt.measure.check import checkup
from opadapt.measure.check.board import board_of
from opadapt.measure.check.checkup import Checkup, Reached, noise
from opadapt.measure.check.device_file import base_of, device_file
from opadapt.measure.check.finding import Case, Finding
from opadapt.measure.check.judge import judge
from opadapt.measure.check.probe import parse, probe
from opadapt.measure.facts import Facts, checked, load_facts
from opadapt.measure.null import NullDevice
from opadapt.measure.timing import BlockTimes, Timing
from opadapt.report.devices import print_checkup
from opadapt.yamlfile import parse_yaml, validate


def call(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["devices", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.stderr, result.output
    assert result.stdout == ""
    return str(result.stderr)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder and a home with no device files in them."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


Reach = Callable[..., list[str | None]]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Reach:
    """Puts boards behind ssh, and a device that takes no time behind ``open_device``."""

    def put(*boards: FakeBoard, error: DeviceError | None = None) -> list[str | None]:
        asked: list[str | None] = []

        @contextmanager
        def over_ssh(host: str | None) -> Iterator[Reached]:
            asked.append(host)
            yield Reached(boards[(len(asked) - 1) % len(boards)], "SHA256:abc")

        def open_device(name: str, threads: int = 1, host: str | None = None) -> NullDevice:
            asked.append(f"{name} at {host}")
            if error is not None:
                raise error
            return NullDevice(load_facts("null"), threads)

        monkeypatch.setattr(checkup, "REACH", {**checkup.REACH, "ssh": over_ssh})
        monkeypatch.setattr(checkup, "open_device", open_device)
        return asked

    return put


def test_check_of_a_good_board(tmp_path: Path, at: Reach) -> None:
    asked = at(pi4(tmp_path / "pi"))
    result = call("check", "rpi4@pi@10.0.0.7", "--json", "out.json")
    assert result.exit_code == 0, result.output
    assert asked == ["pi@10.0.0.7", "rpi4 at pi@10.0.0.7"]
    lines = result.stdout.splitlines()
    assert lines[0] == "rpi4 at pi@10.0.0.7" and lines[1] == "ok    host key: SHA256:abc"
    assert "ok    onnxruntime: 1.22.1, numpy 2.2.6" in lines
    assert any(line.startswith("ok    noise floor: 0.0 %") for line in lines)
    assert "do:" not in result.stdout
    found = json.loads(Path("out.json").read_text())
    assert found["schema_version"] == 1
    (board,) = found["boards"]
    assert (board["device"], board["host"]) == ("rpi4", "pi@10.0.0.7")
    assert {f["verdict"] for f in board["findings"]} == {"ok"}
    assert board["board"]["venv"]["has"] == ["venv", "zlib"] and board["board"]["throttled"] == 0


def test_check_of_a_bad_board_says_what_to_do_and_ends_with_2(tmp_path: Path, at: Reach) -> None:
    asked = at(without_python(tmp_path / "bare"))
    result = call("check", "rpi4", "--host", "board.lan")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert asked == ["board.lan"]  # nothing is measured there
    lines = result.stdout.splitlines()
    assert "bad   python: no python3" in lines and "      do: sudo apt install python3" in lines
    assert "bad   noise floor: not measured" in lines


def test_warnings_alone_are_no_refusal(tmp_path: Path, at: Reach) -> None:
    board = pi4(tmp_path / "pi", throttled="throttled=0x50000")
    at(board)
    result = call("check", "rpi4@pi")
    assert result.exit_code == 0 and "warn  throttling" in result.stdout


def test_check_of_several_boards_takes_the_worst(tmp_path: Path, at: Reach) -> None:
    asked = at(pi4(tmp_path / "a"), pi4(tmp_path / "a2"), hot_pi(tmp_path / "b"))
    result = call("check", "rpi4@a,b", "--json", "out.json")
    assert asked == ["a", "rpi4 at a", "b", "rpi4 at b"]
    assert result.exit_code == 2
    assert "rpi4 at a" in result.stdout and "rpi4 at b" in result.stdout
    assert [b["host"] for b in json.loads(Path("out.json").read_text())["boards"]] == ["a", "b"]


def test_a_board_that_is_not_there_keeps_no_other_from_being_checked(
    tmp_path: Path, at: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(pi4(tmp_path / "pi"))
    there = checkup.REACH["ssh"]

    @contextmanager
    def over_ssh(host: str | None) -> Iterator[Reached]:
        if host == "b":
            raise LostDevice("b: does not answer", found="silence", do="see that it is on")
        with there(host) as reached:
            yield reached

    monkeypatch.setattr(checkup, "REACH", {"ssh": over_ssh})
    result = call("check", "rpi4@a,b,c", "--json", "out.json")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "error: b: does not answer" in result.stderr and "do: see that it is on" in result.stderr
    assert [line for line in result.stdout.splitlines() if " at " in line] == ["rpi4 at a", "rpi4 at c"]
    a, b, c = json.loads(Path("out.json").read_text())["boards"]
    assert (
        (a["host"], b["host"], c["host"]) == ("a", "b", "c")
        and a["board"] == c["board"]
        and b["board"] is None
    )
    (finding,) = b["findings"]
    assert (finding["item"], finding["verdict"]) == ("connection", "bad")
    assert finding["found"] == "b: does not answer: silence" and finding["remedy"] == "see that it is on"


@pytest.mark.parametrize(
    ("maker", "kind", "remedy"),
    [
        (pi_32_bit, "rpi4", "install the 64-bit image"),
        (pi_32_bit, "generic-aarch64", "install the 64-bit image"),
        (pi4, "generic-x86", "choose the type that fits"),
        (alpine, "rpi4", "install a newer system"),
    ],
)
def test_nothing_is_installed_where_it_could_never_run(
    tmp_path: Path,
    at: Reach,
    monkeypatch: pytest.MonkeyPatch,
    maker: Callable[[Path], FakeBoard],
    kind: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(checkup, "install", lambda *_: pytest.fail("it was installed"))
    at(maker(tmp_path / "board"))
    message = refused("check", f"{kind}@board", "--install")
    assert f"{kind}@board: onnxruntime cannot be installed there" in message and remedy in message


def test_the_load_is_that_before_the_installation(
    tmp_path: Path, at: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = pi4(tmp_path / "pi", venv="")

    def install(*_: object) -> None:
        (board.root / "proc/loadavg").write_text("3.10 0.20 0.10 1/150 1234\n")
        board.put_command(board.home / ".cache/opadapt/venv/bin/python", python("3.11.2", GOOD))

    monkeypatch.setattr(checkup, "install", install)
    at(board)
    result = call("check", "rpi4@pi", "--install")
    assert result.exit_code == 0, result.output
    assert {"ok    load: 0.10", "ok    onnxruntime: 1.22.1, numpy 2.2.6"} <= set(result.stdout.splitlines())


def test_a_measurement_that_fails_is_a_finding(tmp_path: Path, at: Reach) -> None:
    at(pi4(tmp_path / "pi"), error=DeviceError("another opadapt is measuring on this board", found="anna\nx"))
    result = call("check", "rpi4@pi")
    assert result.exit_code == 2
    assert "bad   noise floor: another opadapt is measuring on this board: anna" in result.stdout


def test_check_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "open_device", lambda *_: NullDevice(load_facts("null"), 1))
    result = call("check", "local")
    assert result.exit_code in (0, 2), result.output
    assert result.stdout.startswith("local\nok    system: ")
    assert "host key" not in result.stdout and "noise floor" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("check", "null"), "not a board to look at"),
        (("check", "local", "--install"), "pip install --upgrade onnxruntime numpy"),
        (("check", "local", "--host", "pi"), "on this machine"),
        (("check", "rpi9"), "no device 'rpi9'"),
        (("show", "rpi9"), "no device 'rpi9'"),
    ],
)
def test_refusals(arguments: tuple[str, ...], text: str) -> None:
    assert text in refused(*arguments)


def test_the_connection_that_fails_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def unknown(host: str | None) -> Iterator[Reached]:
        raise DeviceError("the host key is unknown", found="SHA256:xyz", do="compare it, then: ssh pi")
        yield

    monkeypatch.setattr(checkup, "REACH", {"ssh": unknown})
    found = refused("check", "rpi4@pi")
    assert "SHA256:xyz" in found and "do: compare it, then: ssh pi" in found


def test_list(tmp_path: Path) -> None:
    mine = tmp_path / "config/opadapt/devices"
    mine.mkdir(parents=True)
    text = "name: {}\ndescription: '[red]mine'\ntransport: ssh\narch: aarch64\nhost: pi@garage\nexperimental: true\n"
    (mine / "garage.yaml").write_text(text.format("garage"))
    (mine / "broken.yaml").write_text("transport: telepathy\n")
    result = call("list")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["garage"] == "garage  aarch64  ssh pi@garage  (experimental) [red]mine"
    assert lines["local"].startswith("local  host  this machine") and lines["null"]
    assert "cannot be used" in lines["broken"] and "broken.yaml" in lines["broken"]
    assert "(experimental)" in lines["redmi-note-7s"] and "(experimental)" not in lines["rpi4"]


def test_show_tells_the_file_its_comments_and_the_defaults() -> None:
    result = call("show", "local")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    path = Path(lines[0].removeprefix("# "))
    assert lines[1 : 1 + len(path.read_text().splitlines())] == path.read_text().splitlines()
    assert "# python: python3" in lines
    values = parse_yaml(result.stdout, "shown")
    assert validate(Facts, values) == load_facts("local")


def test_init_writes_what_it_found(tmp_path: Path, at: Reach) -> None:
    asked = at(jetson(tmp_path / "nano"))
    result = call("init", "nvidia@10.0.0.9:2222", "garage")
    assert result.exit_code == 0, result.output
    assert asked == ["nvidia@10.0.0.9:2222"]
    facts = load_facts("garage")  # found in the working folder
    assert (facts.transport, facts.host, facts.arch) == ("ssh", "nvidia@10.0.0.9:2222", "aarch64")
    assert facts.description == "NVIDIA Jetson Nano Developer Kit, Ubuntu 18.04.6 LTS"
    assert facts.cores == 2 and facts.pin_cores == () and facts.extensions == ("fp", "asimd")
    assert [(t.kind, t.match) for t in facts.thermal] == [("zone", "CPU-therm")]
    assert [(p.kind, p.match) for p in facts.power] == [("hwmon", "ina3221")]
    assert facts.wheel_platforms[0] == "manylinux_2_27_aarch64"
    assert facts.bad_onnxruntime == load_facts("generic-aarch64").bad_onnxruntime
    text = Path("garage.yaml").read_text()
    keys = [line.partition(":")[0] for line in text.splitlines() if line[0] not in "# -"]
    lines = text.splitlines()
    for key in keys:  # each fact with how it was found
        at_line = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[at_line - 1].startswith("# ")
    assert "garage" in call("list").stdout


def test_init_of_a_known_type_takes_over_what_boards_do_not_tell(tmp_path: Path, at: Reach) -> None:
    at(pi4(tmp_path / "pi"))
    target = tmp_path / "some where/shed.yaml"
    target.parent.mkdir()
    result = call("init", "rpi4", target, "--host", "pi@shed")
    assert result.exit_code == 0, result.output
    facts, rpi4 = load_facts(str(target)), load_facts("rpi4")
    assert facts.name == "shed" and facts.host == "pi@shed"
    assert (facts.cool, facts.bad_onnxruntime) == (rpi4.cool, rpi4.bad_onnxruntime)
    assert facts.pin_cores == rpi4.pin_cores == (3,)
    assert "from rpi4" in target.read_text()
    assert {t.kind for t in facts.thermal} == {"zone", "vcgencmd"}


def test_init_overwrites_only_when_forced(tmp_path: Path, at: Reach) -> None:
    asked = at(pi4(tmp_path / "pi"))
    Path("mine.yaml").write_text("precious\n")
    assert "--force" in refused("init", "pi@10.0.0.7", "mine")
    assert Path("mine.yaml").read_text() == "precious\n" and asked == []
    assert call("init", "pi@10.0.0.7", "mine", "--force").exit_code == 0
    assert load_facts("mine").host == "pi@10.0.0.7"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("init", "rpi4@a,b", "x"), "one board"),
        (("init", "not a host", "x"), "not a host"),
        (("init", "pi@10.0.0.7", "x", "--host", "other"), "known type"),
        (("init", "pi@10.0.0.7", "no/such/folder/x"), "cannot write"),
        (("init", "pi@10.0.0.7", "two words"), "name of a device type"),
        (("init", "null", "x"), "not a board"),
    ],
)
def test_init_refuses(tmp_path: Path, at: Reach, arguments: tuple[str, ...], text: str) -> None:
    at(pi4(tmp_path / "pi"))
    assert text in refused(*arguments)
    assert not list(Path().glob("*.yaml"))


def test_a_board_that_tells_almost_nothing_still_gets_a_valid_file(tmp_path: Path) -> None:
    board = board_of(probe(without_python(tmp_path)))
    text = device_file(board, "bare", "ssh", "h", base_of(board, None), "2026-11-23")
    assert validate(Facts, parse_yaml(text, "bare")).arch == "aarch64"
    assert "not found there" in text


def test_cores_that_are_switched_off_between_others_do_not_break_the_file() -> None:
    cpu = "file\t/sys/devices/system/cpu"
    lines = [f"{cpu}/cpu{i}/cpu_capacity\t{400 if i < 4 else 1024}" for i in range(8)]
    board = board_of(parse("\n".join(["machine\taarch64", *lines, f"{cpu}/online\t0-1,4-5"])))
    text = device_file(board, "big", "ssh", "h", None, "2026-11-23")
    facts = checked(parse_yaml(text, "big.yaml"))
    assert board.cores == 4 and facts.cores == 6 and facts.pin_cores == (4, 5)
    found = {f.item: f for f in judge(Case(board, facts, "big@h"))}["cores"]
    assert (found.verdict, found.found) == ("warn", "4 of 6")


@pytest.mark.parametrize("maker", [pi4, hot_pi, jetson, without_python])
def test_the_table_fits_80_columns_and_commands_stay_whole(
    tmp_path: Path, maker: Callable[[Path], FakeBoard]
) -> None:
    case = Case(board_of(probe(maker(tmp_path))), load_facts("rpi4"), "rpi4@board")
    findings = (Finding("host key", "ok", "SHA256:" + 43 * "x"), *judge(case))
    stream = io.StringIO()
    print_checkup(
        Checkup("rpi4", "board", case.board, findings), Console(file=stream, force_terminal=True, width=80)
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    commands = {f"    {f.command}" for f in findings if f.command}
    assert commands <= set(lines)
    assert max(len(line) for line in lines if line not in commands) <= 80
    for finding in findings:
        assert any(line.startswith(f"{finding.verdict} ") and finding.item in line for line in lines)


def test_control_characters_of_a_board_stay_out_of_the_terminal(tmp_path: Path) -> None:
    board = pi4(tmp_path)
    (board.root / "proc/device-tree/model").write_text("Pi \x1b[2J[red]4\0")
    case = Case(board_of(probe(board)), load_facts("rpi4"), "rpi4@board")
    for terminal in (True, False):
        stream = io.StringIO()
        findings = tuple(judge(case))
        console = Console(file=stream, force_terminal=terminal, width=80)
        print_checkup(Checkup("rpi4", None, case.board, findings), console)
        assert "\x1b[2J" not in stream.getvalue() and "[red]4" in stream.getvalue()


class Noisy(NullDevice):
    """The second of two equal models reads slower; some blocks were thrown away."""

    def __init__(self, ratio: float, discarded: int = 0) -> None:
        super().__init__(load_facts("null"), 1)
        self.ratio, self.discarded = ratio, discarded

    def time(self, models: Any, timing: Timing) -> BlockTimes:
        latency_s = np.outer([1e-3, self.ratio * 1e-3], np.ones(timing.blocks))
        return BlockTimes(latency_s, {"discarded_blocks": self.discarded})


@pytest.mark.parametrize(
    ("device", "verdict", "text"),
    [
        (Noisy(1.01), "ok", "1.0 %"),
        (Noisy(1.05), "warn", "4.8 %"),
        (Noisy(1.01, 3), "warn", "3 blocks thrown away"),
    ],
)
def test_noise_floor(device: Noisy, verdict: str, text: str) -> None:
    found = noise(device)
    assert found.verdict == verdict and text in found.found
    assert (found.remedy is None) == (verdict == "ok")
