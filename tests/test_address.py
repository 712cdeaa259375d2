"""Addresses and AE titles: every valid form comes back as it was, every bad one says which part is wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dicom_echo import Address, AddressError, parse_address

FORM = "; expected [AE-TITLE@]HOST[:PORT]"


def test_every_form_and_its_text() -> None:
    forms = {
        "pacs": Address(None, "pacs", None),
        "pacs:104": Address(None, "pacs", 104),
        "pacs.example.org.:104": Address(None, "pacs.example.org.", 104),
        "my_pacs-2:1": Address(None, "my_pacs-2", 1),
        "münchen.example:65535": Address(None, "münchen.example", 65535),
        "192.0.2.7:104": Address(None, "192.0.2.7", 104),
        "1pacs": Address(None, "1pacs", None),
        "ANY-SCP@pacs": Address("ANY-SCP", "pacs", None),
        "ANY-SCP@pacs:11112": Address("ANY-SCP", "pacs", 11112),
        "A@B@pacs:104": Address("A@B", "pacs", 104),
        "A:1@pacs:104": Address("A:1", "pacs", 104),
        "A/B//C:@pacs:104": Address("A/B//C:", "pacs", 104),
        "MY PACS 1@pacs:104": Address("MY PACS 1", "pacs", 104),
        "SIXTEEN-LETTERS!@pacs": Address("SIXTEEN-LETTERS!", "pacs", None),
        "[::1]:104": Address(None, "::1", 104),
        "[fe80::1%eth0]:104": Address(None, "fe80::1%eth0", 104),
        "X@[2001:db8::7]:104": Address("X", "2001:db8::7", 104),
        "A@B@[::1]:104": Address("A@B", "::1", 104),
        "::1": Address(None, "::1", None),
        "2001:db8::7:104": Address(None, "2001:db8::7:104", None),
        "fe80::1%3": Address(None, "fe80::1%3", None),
        "X@fe80::1%eth0": Address("X", "fe80::1%eth0", None),
    }
    assert {text: parse_address(text) for text in forms} == forms
    assert [str(address) for address in forms.values()] == list(forms)


def test_forms_of_which_the_text_is_plainer() -> None:
    forms = {
        "  PADDED  @pacs": "PADDED@pacs", "[::1]": "::1", "[pacs]:104": "pacs:104", "pacs:00104": "pacs:104",
        "X@[pacs.example.]": "X@pacs.example.", "[192.0.2.7]:104": "192.0.2.7:104",
    }  # fmt: skip
    assert {text: str(parse_address(text)) for text in forms} == forms


BAD_TITLE = "contains a backslash, a control character or a non-ASCII character"

WRONG: dict[Any, str] = {
    **dict.fromkeys(("", ":104", "X@", "X@:104", "[]:104"), "the host is missing"),
    **dict.fromkeys(("pacs:", "[::1]:"), "the port is missing"),
    **{
        f"pacs:{port}": f"the port {port} is not in the range 1-65535"
        for port in ("dicom", "-1", "1_0", "１０４", " 104", 0, 65536, 70000)
    },
    "[::1": '"[::1" is not [HOST] or [HOST]:PORT',
    "[::1]104": '"[::1]104" is not [HOST] or [HOST]:PORT',
    "[[pacs]]": '"[[pacs]]" is not [HOST] or [HOST]:PORT',
    "pacs:104:105": '"pacs:104:105" has several colons but is not an IPv6 address (with a port, write [IPv6]:PORT)',
    "300.1.1.1:104": '"300.1.1.1" is not an IPv4 address',
    **dict.fromkeys(("10.1", "[10.1]"), '"10.1" is not an IPv4 address'),
    **{host: f'"{host}" is not an IPv4 address' for host in (".", "²", "１２７.0.0.1")},  # once IDNA has read it
    "104": '"104" is not a host; write HOST:104 as one argument',
    "X@11112": '"11112" is not a host; write HOST:11112 as one argument',
    "pacs  104": '"pacs  104" is not a host; write pacs:104 as one argument',
    "PACS pacs 104": '"PACS pacs 104" is not a host name',
    **dict.fromkeys(("pacs 104", "X@pacs 104"), '"pacs 104" is not a host; write pacs:104 as one argument'),
    **{url: f'"{url}" is a URL' for url in ("dicom://X@pacs:104", "X@https://pacs")},
    **{f"[{host}]": f'"{host}" is not a host name' for host in ("fe80::1%", "fe80::1%a b", "pacs:104")},
    **{host: f'"{host}" is not a host name' for host in ("pa cs", "pacs..example", "-pacs", "pacs/x", "ü" * 64)},
    "pacs\n": '"pacs\\n" is not a host name',
    "pa\u200bcs": '"pa\\u200bcs" is not a host name',  # zero width space
    "pa\u00adcs:104": '"pa\\xadcs" is not a host name',  # soft hyphen
    "\ufeffpacs": '"\\ufeffpacs" is not a host name',  # byte order mark
    **{name: f'"{name}" is not a host name' for name in ("x" * 64, ".".join(["x" * 63] * 4))},
    **dict.fromkeys(("@pacs", "    @pacs"), "the AE title is empty"),
    "SEVENTEEN-LETTERS@pacs": 'the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed',
    "A\\B@pacs": rf"the AE title 'A\\B' {BAD_TITLE}",
    "A\tB@pacs": rf"the AE title 'A\tB' {BAD_TITLE}",
    "A\x7fB@pacs": rf"the AE title 'A\x7fB' {BAD_TITLE}",
    "ÄB@pacs": f"the AE title 'ÄB' {BAD_TITLE}",
    **{what: f"the address must be text, not {what!r}" for what in (None, 104, b"pacs")},
}


def refusal(text: Any) -> str:
    try:
        return f"none, but {parse_address(text)!r}"
    except AddressError as error:
        return str(error)


def test_every_bad_form_has_its_message() -> None:
    assert {text: refusal(text) for text in WRONG} == {text: why + FORM for text, why in WRONG.items()}


AE_CHARACTERS = "".join(map(chr, range(32, 127))).replace("\\", "")
titles = st.text(AE_CHARACTERS, min_size=1, max_size=16).map(lambda text: text.strip().replace("://", "") or "X")
labels = st.text("az09_-", min_size=1, max_size=30).map(lambda text: f"x{text}x")
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
zones = st.sampled_from(["1", "eth0", "en0.100", "Wi-Fi_2"])
hosts = names | st.ip_addresses().map(str) | st.builds("{}%{}".format, st.ip_addresses(v=6), zones)
calm = settings(deadline=None)  # the machine may be busy
addresses = st.builds(Address, st.none() | titles, hosts, st.none() | st.integers(1, 65535))


@calm
@given(addresses)
def test_a_valid_address_survives_its_text_and_its_host_brackets(address: Address) -> None:
    assert parse_address(str(address)) == address
    assert parse_address(f"[{address.host}]:104") == Address(None, address.host, 104)


@calm
@given(st.text() | st.text("@:[]%.\\ aF0:"))
@example("@" * 40)
@example("[" * 40)
@example("pacs:" + "9" * 5000)
@example("\ud800")
@example("xn--\udcff.example")
def test_any_text_parses_or_says_why(text: str) -> None:
    why = refusal(text)
    assert why.endswith(FORM) or parse_address(str(parse_address(text))) == parse_address(text)
