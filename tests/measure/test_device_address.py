"""What ``--device`` and ``--host`` may say: which device type, at which hosts."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opadapt.errors import ConfigError
from opadapt.measure.address import Address, Host, parse_device, split_device, split_host

ADDRESSES: dict[tuple[str, str | None], Address] = {
    ("rpi4", None): Address("rpi4"),
    ("rpi4@shelf", None): Address("rpi4", ("shelf",)),
    ("rpi4@a,b,c", None): Address("rpi4", ("a", "b", "c")),
    ("rpi4@pi@10.0.0.7", None): Address("rpi4", ("pi@10.0.0.7",)),
    ("rpi4@pi@a:2222,root@b", None): Address("rpi4", ("pi@a:2222", "root@b")),
    ("rpi4", "pi@10.0.0.7"): Address("rpi4", ("pi@10.0.0.7",)),
    ("rpi4", "10.0.0.7:2222"): Address("rpi4", ("10.0.0.7:2222",)),
    ("rpi4", "a,b"): Address("rpi4", ("a", "b")),
    ("rpi4@fe80::1", None): Address("rpi4", ("fe80::1",)),
    ("rpi4@pi@[fe80::1]:2222", None): Address("rpi4", ("pi@[fe80::1]:2222",)),
    ("boards/mine.yaml", None): Address("boards/mine.yaml"),
    ("boards/mine.yaml@a,b", None): Address("boards/mine.yaml", ("a", "b")),
    ("/home/me@work/mine.yaml@pi@a", None): Address("/home/me@work/mine.yaml", ("pi@a",)),
    ("mine.yml@a", None): Address("mine.yml", ("a",)),
    ("redmi-note-7s@emulator-5554", None): Address("redmi-note-7s", ("emulator-5554",)),
}

REFUSED: dict[tuple[str, str | None], str] = {
    ("", None): "no device type",
    ("@a", None): "no device type",
    ("rpi4@", None): "not a host",
    ("rpi4", ""): "not a host",
    ("rpi4@a,", None): "not a host",
    ("rpi4@a,,b", None): "not a host",
    ("rpi4@a b", None): "not a host",
    ("rpi4@a, b", None): "not a host",
    ("rpi4@-oProxyCommand=x", None): "not a host",
    ("rpi4@-l@a", None): "not a host",
    ("rpi4@@a", None): "not a host",
    ("rpi4@pi@", None): "not a host",
    ("rpi4@a@b@c", None): "not a host",
    ("rpi4@a:", None): "not a host",
    ("rpi4@a:0", None): "not a host",
    ("rpi4@a:65536", None): "not a host",
    ("rpi4@a:ssh", None): "not a host",
    ("rpi4@[a]", None): "not a host",
    ("rpi4@ssh://a", None): "not a host",
    ("rpi4@a,b,a", None): "named twice",
    ("rpi4@a", "b"): "given twice",
    ("rpi4@", "b"): "given twice",
}


@pytest.mark.parametrize(("text", "host"), ADDRESSES)
def test_what_is_meant(text: str, host: str | None) -> None:
    assert parse_device(text, host) == ADDRESSES[text, host]


@pytest.mark.parametrize(("text", "host"), REFUSED)
def test_what_is_refused(text: str, host: str | None) -> None:
    with pytest.raises(ConfigError, match=REFUSED[text, host]) as error:
        parse_device(text, host)
    assert error.value.expected is not None and error.value.found is not None


def test_a_password_is_refused_and_not_shown_again() -> None:
    with pytest.raises(ConfigError, match="password") as error:
        parse_device("rpi4@pi:hunter2@10.0.0.7")
    assert "hunter2" not in str(error.value)


HOSTS: dict[str, Host] = {
    "shelf": Host("shelf"),
    "pi@shelf": Host("shelf", "pi"),
    "pi@10.0.0.7:2222": Host("10.0.0.7", "pi", 2222),
    "a.example.org:22": Host("a.example.org", None, 22),
    "fe80::1": Host("fe80::1"),
    "pi@::1": Host("::1", "pi"),
    "[::1]:2222": Host("::1", None, 2222),
    "pi@[fe80::1%eth0]": Host("fe80::1%eth0", "pi"),
}


@pytest.mark.parametrize("text", HOSTS)
def test_the_parts_of_a_host(text: str) -> None:
    assert split_host(text) == HOSTS[text]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
addresses = st.ip_addresses().map(lambda ip: f"[{ip}]" if isinstance(ip, ipaddress.IPv6Address) else str(ip))
parts = st.builds(Host, names | addresses, st.none() | names, st.none() | st.integers(1, 65535))


def written(host: Host) -> str:
    user = "" if host.user is None else f"{host.user}@"
    return f"{user}{host.name}" + ("" if host.port is None else f":{host.port}")


@settings(deadline=None)
@given(parts)
def test_a_host_is_the_sum_of_its_parts(host: Host) -> None:
    found = split_host(written(host))
    assert found == Host(host.name.strip("[]"), host.user, host.port)


kinds = names.filter(lambda name: not name.endswith((".yaml", ".yml"))) | names.map(lambda n: f"a@b/{n}.yaml")


@settings(deadline=None)
@given(kinds, st.lists(parts.map(written), min_size=1, max_size=4, unique=True))
def test_both_ways_of_naming_hosts_mean_the_same_and_are_written_back(kind: str, hosts: list[str]) -> None:
    wanted = Address(kind, tuple(hosts))
    assert parse_device(f"{kind}@{','.join(hosts)}") == parse_device(kind, ",".join(hosts)) == wanted
    assert str(wanted) == f"{kind}@{','.join(hosts)}"
    assert parse_device(kind) == Address(kind) and str(Address(kind)) == kind


@settings(deadline=None)
@given(st.text(max_size=30), st.none() | st.text(max_size=30))
def test_any_text_is_an_address_or_a_refusal(text: str, host: str | None) -> None:
    try:
        address = parse_device(text, host)
    except ConfigError:
        return
    assert address.type and split_device(text)[0] == address.type
    assert len(set(address.hosts)) == len(address.hosts)
    for name in address.hosts:
        assert not any(c.isspace() or c == "," for c in name) and not name.startswith("-")
