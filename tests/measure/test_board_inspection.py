"""What ``devices check`` makes of boards: the probe runs for real on boards made of files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fake_boards import GOOD, FakeBoard, alpine, hot_pi, jetson, pi4, pi_32_bit, python, without_python

from opadapt.errors import DeviceError
from opadapt.measure.check.board import Board, board_of, wheel_platforms
from opadapt.measure.check.finding import Case, Finding
from opadapt.measure.check.judge import CHECKS, judge, usable
from opadapt.measure.check.probe import Done, LocalRunner, parse, probe
from opadapt.measure.check.state import FLAGS, decode
from opadapt.measure.facts import load_facts

RPI4 = load_facts("rpi4")


def ask(board: FakeBoard) -> Board:
    return board_of(probe(board))


def findings(board: Board, kind: str = "rpi4") -> dict[str, Finding]:
    return {f.item: f for f in judge(Case(board, load_facts(kind), f"{kind}@board"))}


def test_a_pi_as_it_should_be(tmp_path: Path) -> None:
    board = ask(pi4(tmp_path))
    assert (board.machine, board.cores, board.glibc, board.bits) == ("aarch64", 4, (2, 36), 64)
    assert board.model == "Raspberry Pi 4 Model B Rev 1.4" and board.os == "Debian GNU/Linux 12 (bookworm)"
    assert board.extensions == ("fp", "asimd", "evtstrm", "crc32", "cpuid")
    assert board.memory_bytes == 3884360 * 1024 and board.memory_free_bytes == 3423180 * 1024
    assert board.disk_free_bytes == 20_000_000 * 1024
    assert board.venv is not None and board.venv.version == (3, 11, 2) and board.venv.failure is None
    assert (
        board.base is not None and board.base.failure == "ModuleNotFoundError: No module named 'onnxruntime'"
    )
    found = findings(board)
    assert {f.verdict for f in found.values()} == {"ok"}
    assert found["python"].found.endswith("set up by --install")
    assert found["onnxruntime"].found == "1.22.1, numpy 2.2.6"
    assert found["clock"].found == "1800 MHz of 1800"
    assert found["temperature"].found == "48 °C"
    assert usable(list(found.values()))


def test_every_item_is_judged_under_its_own_name(tmp_path: Path) -> None:
    assert [f.item for f in judge(Case(ask(pi4(tmp_path)), RPI4))] == list(CHECKS)


def test_a_remedy_with_everything_that_is_not_ok(tmp_path: Path) -> None:
    makers: Sequence[Callable[[Path], FakeBoard]] = (pi4, hot_pi, jetson, without_python, alpine)
    for maker in makers:
        board = ask(maker(tmp_path / maker.__name__))
        for kind in ("rpi4", "jetson-nano", "generic-aarch64", "generic-x86"):
            for finding in findings(board, kind).values():
                assert (finding.verdict == "ok") == (finding.remedy is None), finding


def test_a_hot_throttled_board(tmp_path: Path) -> None:
    found = findings(ask(hot_pi(tmp_path)))
    assert found["throttling"].verdict == "bad"
    assert found["throttling"].found == "under-voltage, throttled now (0x50005)"
    assert "supply" in (found["throttling"].remedy or "")
    assert found["temperature"].verdict == "bad" and "80 °C" in (found["temperature"].remedy or "")
    assert found["governor"].verdict == "warn"
    assert found["governor"].command == (
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    )
    assert found["clock"].verdict == "warn" and found["clock"].found == "600 MHz of 1800"
    assert found["clock"].command == (
        "echo 1800000 | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq"
    )
    assert found["load"].verdict == "warn"


def test_a_warm_board_waits_where_its_facts_say_so(tmp_path: Path) -> None:
    board = pi4(tmp_path)
    (board.root / "sys/class/thermal/thermal_zone0/temp").write_text("71000\n")
    found = findings(ask(board))["temperature"]
    assert found.verdict == "warn" and "until it is below 65 °C" in (found.remedy or "")


@pytest.mark.parametrize(
    ("word", "now", "past"),
    [(0, [], []), (0x50000, [], [0, 2]), (0x50005, [0, 2], [0, 2]), (0xF000F, [0, 1, 2, 3], [0, 1, 2, 3])]
    + [(1 << bit, [bit], []) for bit in FLAGS]
    + [(0x10 | 0x100000, [], [])],
)
def test_flags_of_throttling(word: int, now: list[int], past: list[int]) -> None:
    assert decode(word) == (now, past)


def test_throttling_of_the_past_is_a_warning(tmp_path: Path) -> None:
    found = findings(ask(pi4(tmp_path, "throttled=0x80000")))["throttling"]
    assert (found.verdict, found.found) == ("warn", "soft temperature limit since the start (0x80000)")


def test_vcgencmd_that_may_not_be_asked(tmp_path: Path) -> None:
    board = ask(pi4(tmp_path, "VCHI initialization failed"))
    assert board.throttled is None
    found = findings(board)["throttling"]
    assert found.verdict == "warn" and "VCHI" in found.found
    assert found.command == "sudo usermod -aG video pi"


def test_a_jetson(tmp_path: Path) -> None:
    board = ask(jetson(tmp_path))
    found = findings(board, "jetson-nano")
    assert found["temperature"].found.startswith("36 °C")  # PMIC-Die always says 100
    assert board.power == (("hwmon", "ina3221"),)
    assert (found["cores"].verdict, found["cores"].found) == ("warn", "2 of 4")
    assert found["python"].verdict == "bad" and found["python"].found.startswith("3.6.9")
    assert found["onnxruntime"].command == "opadapt devices check jetson-nano@board --install"
    assert found["memory"].verdict == "warn"
    assert found["architecture"].verdict == "warn" and "cpuid" in (found["architecture"].remedy or "")
    assert not usable(list(found.values()))


def test_no_python(tmp_path: Path) -> None:
    board = ask(without_python(tmp_path))
    assert board.python is None
    found = findings(board)
    assert found["python"].verdict == "bad" and found["python"].command == "sudo apt install python3"
    assert found["onnxruntime"].verdict == "bad"
    silent = {"memory", "governor", "clock", "temperature", "throttling", "load"}
    assert {name for name, f in found.items() if f.found == "the system does not tell"} == silent
    assert found["cores"].found == "4"


def test_onnxruntime_known_bad_is_named_with_the_fix(tmp_path: Path) -> None:
    venv = python("3.11.2", {"numpy": "2.2.6", "onnxruntime": "1.21.0"}, end="kill -ILL $$")
    board = ask(pi4(tmp_path, venv=venv))
    assert board.venv is not None and board.venv.failure == "killed by SIGILL: an instruction this CPU lacks"
    found = findings(board)["onnxruntime"]
    assert found.verdict == "bad" and found.remedy == "install onnxruntime 1.22 or newer"
    assert found.found == "1.21.0, numpy 2.2.6: dies with an illegal instruction when it is imported"
    unknown = findings(board, "generic-x86")["onnxruntime"]
    assert unknown.verdict == "bad" and "SIGILL" in unknown.found


@pytest.mark.parametrize(
    ("script", "verdict", "text"),
    [
        (python("3.8.10", GOOD), "bad", "3.8.10"),
        (python("3.9.2", GOOD), "ok", "3.9.2"),
        (python("3.13.1", GOOD), "ok", "3.13.1"),
        (python("3.14.0", GOOD), "warn", "3.14.0"),
        (python("3.11.2", GOOD, bits=32), "bad", "32 bits"),
        ("exit 127", "bad", "does not start"),
    ],
)
def test_versions_of_python(tmp_path: Path, script: str, verdict: str, text: str) -> None:
    found = findings(ask(pi4(tmp_path, venv=script)))["python"]
    assert found.verdict == verdict and text in found.found


def test_an_environment_whose_python_is_gone_is_passed_over_as_the_transport_does(tmp_path: Path) -> None:
    board = pi4(tmp_path, venv="")
    link = board.home / ".cache/opadapt/venv/bin/python"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/bin/python2.9")  # gone with a new release of the system
    found = findings(ask(board))
    assert found["python"].verdict == "ok" and "--install" not in found["python"].found
    assert found["onnxruntime"].command == "opadapt devices check rpi4@board --install"


def test_without_an_environment_the_boards_own_python_counts(tmp_path: Path) -> None:
    board = ask(pi4(tmp_path, venv="", python3=python("3.11.2", GOOD)))
    assert board.venv is None
    assert findings(board)["onnxruntime"].verdict == "ok"


def test_a_32_bit_system_on_a_64_bit_kernel(tmp_path: Path) -> None:
    board = pi4(tmp_path)
    board.put_command(board.bin / "getconf", "case $1 in LONG_BIT) echo 32;; *) echo 'glibc 2.36';; esac")
    found = findings(ask(board))["system"]
    assert found.verdict == "bad" and "64-bit image" in (found.remedy or "")


@pytest.mark.parametrize("kind", ["rpi4", "generic-x86"])
def test_a_32_bit_kernel(tmp_path: Path, kind: str) -> None:
    found = findings(ask(pi_32_bit(tmp_path)), kind)
    for item in ("system", "architecture"):
        assert found[item].verdict == "bad" and "install the 64-bit image" in (found[item].remedy or "")


@pytest.mark.parametrize(("pinned", "verdict"), [((4, 5), "ok"), ((1, 2), "bad"), ((3,), "bad")])
def test_cores_are_looked_for_by_their_numbers(pinned: tuple[int, ...], verdict: str) -> None:
    board = board_of(parse("file\t/sys/devices/system/cpu/online\t0-1,4-5"))
    assert (board.cores, board.online) == (4, (0, 1, 4, 5))
    found = judge(Case(board, RPI4.model_copy(update={"pin_cores": pinned})))[2]
    assert (found.item, found.verdict) == ("cores", verdict)


def test_a_system_without_glibc(tmp_path: Path) -> None:
    board = ask(alpine(tmp_path))
    assert wheel_platforms(board, RPI4) == ()
    assert findings(board)["system"].verdict == "bad"


def test_another_kind_of_board(tmp_path: Path) -> None:
    board = ask(pi4(tmp_path))
    found = findings(board, "generic-x86")["architecture"]
    assert found.verdict == "bad" and "x86_64" in (found.remedy or "")
    pinned = RPI4.model_copy(update={"pin_cores": (7,), "cores": None})
    assert judge(Case(board, pinned))[2].verdict == "bad"


@pytest.mark.parametrize(("free", "verdict"), [(10e6, "bad"), (300e6, "warn"), (2e9, "ok")])
def test_room(tmp_path: Path, free: float, verdict: str) -> None:
    board = replace(ask(pi4(tmp_path)), disk_free_bytes=int(free), memory_free_bytes=int(free))
    found = findings(board)
    assert found["disk"].verdict == found["memory"].verdict == verdict


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    told = parse(
        "machine\taarch64\nhome\t/home/pi\ncache\t/home/pi/.cache/opadapt\nuser\tpi\nreadonly\t/home/pi/.cache\n"
    )
    found = findings(board_of(told))["disk"]
    assert found.verdict == "bad" and found.found == "~/.cache/opadapt cannot be written"


def test_platforms_of_wheels_do_not_ask_for_a_newer_glibc(tmp_path: Path) -> None:
    nano = ask(jetson(tmp_path / "nano"))
    assert "manylinux_2_28_aarch64" in RPI4.wheel_platforms
    assert wheel_platforms(nano, RPI4) == (
        "manylinux_2_27_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    )
    every = wheel_platforms(nano)
    assert every[0] == "manylinux_2_27_aarch64" and every[-2:] == (
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    )


def test_this_machine_as_the_real_python_says_it() -> None:
    board = board_of(probe(LocalRunner(), sys.executable, own=False))
    import numpy
    import onnxruntime

    assert board.venv is None and board.base is not None
    assert board.base.version == sys.version_info[:3] and board.base.failure is None
    assert (board.base.numpy, board.base.onnxruntime) == (numpy.__version__, onnxruntime.__version__)
    assert {"venv", "zlib"} <= board.base.has and board.base.bits == 64
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    assert board.machine == machine
    assert {f.item: f for f in judge(Case(board, load_facts("local"), "local", here=True))}[
        "onnxruntime"
    ].verdict == "ok"


def test_a_talkative_shell_and_one_that_is_none(tmp_path: Path) -> None:
    class Other:
        def __init__(self, done: Done) -> None:
            self.done = done

        def run(self, command: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Done:
            return self.done

    told = probe(Other(Done(0, b"Welcome!\nmachine\taarch64\nend\t1\n", b"")))
    assert told.line("machine") == "aarch64"
    with pytest.raises(DeviceError, match="shell script") as raised:
        probe(Other(Done(127, b"", b"sh: not found")))
    assert raised.value.found == "sh: not found"


def test_big_and_little_cores_and_the_counter_of_x86() -> None:
    cpu = "file\t/sys/devices/system/cpu"
    lines = [f"{cpu}/cpu{i}/cpu_capacity\t{400 if i < 2 else 1024}" for i in range(4)]
    lines += [f"{cpu}/cpu{i}/thermal_throttle/core_throttle_count\t{i}" for i in range(4)]
    board = board_of(parse("\n".join([*lines, f"{cpu}/online\t0-1,3"])))
    assert [c.capacity for c in board.cpus] == [400, 400, 1024, 1024]
    assert board.cores == 3 and board.throttle_count == 6
    assert findings(board)["throttling"].verdict == "warn"
