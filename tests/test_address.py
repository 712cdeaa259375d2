"""Addresses and AE titles: every valid form comes back as it was, every bad one says which part is wrong."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import dicom_echo as echo
from dicom_echo import Address, AddressError, parse_address

FORM = "; expected [AE-TITLE@]HOST[:PORT]"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("pacs", Address(None, "pacs", None)),
        ("pacs:104", Address(None, "pacs", 104)),
        ("pacs.example.org.:104", Address(None, "pacs.example.org.", 104)),
        ("my_pacs-2:1", Address(None, "my_pacs-2", 1)),
        ("münchen.example:65535", Address(None, "münchen.example", 65535)),
        ("192.0.2.7:104", Address(None, "192.0.2.7", 104)),
        ("ANY-SCP@pacs", Address("ANY-SCP", "pacs", None)),
        ("ANY-SCP@pacs:11112", Address("ANY-SCP", "pacs", 11112)),
        ("A@B@pacs:104", Address("A@B", "pacs", 104)),
        ("A:1@pacs:104", Address("A:1", "pacs", 104)),
        ("MY PACS 1@pacs:104", Address("MY PACS 1", "pacs", 104)),
        ("  PADDED  @pacs", Address("PADDED", "pacs", None)),
        ("SIXTEEN-LETTERS!@pacs", Address("SIXTEEN-LETTERS!", "pacs", None)),
        ("[::1]", Address(None, "::1", None)),
        ("[::1]:104", Address(None, "::1", 104)),
        ("[fe80::1%eth0]:104", Address(None, "fe80::1%eth0", 104)),
        ("X@[2001:db8::7]:104", Address("X", "2001:db8::7", 104)),
        ("::1", Address(None, "::1", None)),
        ("2001:db8::7:104", Address(None, "2001:db8::7:104", None)),
        ("fe80::1%3", Address(None, "fe80::1%3", None)),
        ("X@::1", Address("X", "::1", None)),
    ],
)
def test_every_form(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the host is missing"),
        (":104", "the host is missing"),
        ("X@", "the host is missing"),
        ("X@:104", "the host is missing"),
        ("pacs:", "the port after the colon is missing"),
        ("[::1]:", "the port after the colon is missing"),
        ("pacs:dicom", 'the port "dicom" is not a number'),
        ("pacs:-1", 'the port "-1" is not a number'),
        ("pacs:1_0", 'the port "1_0" is not a number'),
        ("pacs:１０４", 'the port "１０４" is not a number'),
        ("pacs: 104", 'the port " 104" is not a number'),
        ("pacs:0", "the port 0 is not in the range 1-65535"),
        ("pacs:65536", "the port 65536 is not in the range 1-65535"),
        ("pacs:70000", "the port 70000 is not in the range 1-65535"),
        ("[::1", 'the bracket in "[::1" is not closed'),
        ("[::1]104", '":PORT" must follow the bracket, not "104"'),
        ("[pacs]:104", '"pacs" in brackets is not an IPv6 address'),
        ("[]:104", '"" in brackets is not an IPv6 address'),
        ("[fe80::1%]", '"fe80::1%" in brackets is not an IPv6 address'),
        ("[fe80::1%a b]", '"fe80::1%a b" in brackets is not an IPv6 address'),
        (
            "pacs:104:105",
            '"pacs:104:105" has several colons but is not an IPv6 address (which stands in brackets before a port)',
        ),
        ("300.1.1.1:104", '"300.1.1.1" is not an IPv4 address'),
        ("10.1", '"10.1" is not an IPv4 address'),
        ("pa cs", '"pa cs" is not a host name'),
        ("pacs..example", '"pacs..example" is not a host name'),
        ("-pacs", '"-pacs" is not a host name'),
        ("pacs/x", '"pacs/x" is not a host name'),
        ("pacs\n", '"pacs\n" is not a host name'),
        ("ü" * 64, f'"{"ü" * 64}" is not a host name'),
        ("x" * 64, f'the host name "{"x" * 64}" is too long (63 characters between dots, 253 in all)'),
        (
            ".".join(["x" * 63] * 4),
            f'the host name "{".".join(["x" * 63] * 4)}" is too long (63 characters between dots, 253 in all)',
        ),
        ("@pacs", "the AE title is empty"),
        ("    @pacs", "the AE title is empty"),
        ("SEVENTEEN-LETTERS@pacs", 'the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed'),
        ("A\\B@pacs", "the AE title 'A\\\\B' holds a backslash, a control character or one outside of ASCII"),
        ("A\tB@pacs", "the AE title 'A\\tB' holds a backslash, a control character or one outside of ASCII"),
        ("ÄB@pacs", "the AE title 'ÄB' holds a backslash, a control character or one outside of ASCII"),
    ],
)
def test_every_bad_form_has_its_message(text: str, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert str(caught.value) == why + FORM
    assert isinstance(caught.value, ValueError)
    assert caught.value.kind == "address"
    assert caught.value.phase is None


@pytest.mark.parametrize("text", ["pacs", "pacs:104", "X@pacs:104", "A@B@[::1]:104", "::1", "X@fe80::1%eth0"])
def test_str_gives_the_text_back(text: str) -> None:
    assert str(parse_address(text)) == text


def test_port_zero_is_no_default() -> None:
    """An address is a tuple, but never a false one: what it lacks is None."""
    assert parse_address("pacs").port is None
    assert parse_address("pacs")


AE_CHARACTERS = "".join(sorted(set(map(chr, range(32, 127))) - {"\\"}))
titles = st.text(AE_CHARACTERS, min_size=1, max_size=16).filter(lambda title: title == title.strip() != "")
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=3).map(".".join).filter(lambda name: not name.replace(".", "").isdigit())
zones = st.text(string.ascii_letters + string.digits, min_size=1, max_size=15)
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
hosts = names | v4 | v6 | st.builds("{}%{}".format, v6, zones)
addresses = st.builds(Address, st.none() | titles, hosts, st.none() | st.integers(1, 65535))


@given(addresses)
def test_a_valid_address_survives_its_text(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(st.text() | st.text("@:[]%.\\ aF0:"))
@example("@" * 40)
@example("[" * 40)
@example("pacs:" + "9" * 5000)
@example("\ud800")
@example("xn--\udcff.example")
def test_any_text_parses_or_says_why(text: str) -> None:
    why = ""
    try:
        address = parse_address(text)
    except AddressError as error:
        why = str(error)
    assert why.endswith(FORM) if why else parse_address(str(address)) == address


@given(v6)
def test_a_bare_ipv6_literal_is_taken_whole(host: str) -> None:
    assert ipaddress.ip_address(parse_address(host).host) == ipaddress.ip_address(host)
    assert parse_address(host).port is None


def test_a_wrong_title_argument_is_refused_like_one_in_the_address() -> None:
    with pytest.raises(AddressError, match="the AE title is empty"):
        echo.probe("127.0.0.1:1", called_ae_title="  ")
    with pytest.raises(AddressError, match="has 17 characters"):
        echo.send("127.0.0.1:1", calling_ae_title="X" * 17)
