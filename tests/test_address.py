"""Addresses and AE titles: every valid form comes back as it was, every bad one says which part is wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
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
        ("1pacs", Address(None, "1pacs", None)),
        ("ANY-SCP@pacs", Address("ANY-SCP", "pacs", None)),
        ("ANY-SCP@pacs:11112", Address("ANY-SCP", "pacs", 11112)),
        ("A@B@pacs:104", Address("A@B", "pacs", 104)),
        ("A:1@pacs:104", Address("A:1", "pacs", 104)),
        ("A/B//C:@pacs:104", Address("A/B//C:", "pacs", 104)),
        ("MY PACS 1@pacs:104", Address("MY PACS 1", "pacs", 104)),
        ("SIXTEEN-LETTERS!@pacs", Address("SIXTEEN-LETTERS!", "pacs", None)),
        ("[::1]:104", Address(None, "::1", 104)),
        ("[fe80::1%eth0]:104", Address(None, "fe80::1%eth0", 104)),
        ("X@[2001:db8::7]:104", Address("X", "2001:db8::7", 104)),
        ("A@B@[::1]:104", Address("A@B", "::1", 104)),
        ("::1", Address(None, "::1", None)),
        ("2001:db8::7:104", Address(None, "2001:db8::7:104", None)),
        ("fe80::1%3", Address(None, "fe80::1%3", None)),
        ("X@fe80::1%eth0", Address("X", "fe80::1%eth0", None)),
    ],
)
def test_every_form_and_its_text(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  PADDED  @pacs", "PADDED@pacs"),
        ("[::1]", "::1"),
        ("[pacs]:104", "pacs:104"),
        ("X@[pacs.example.]", "X@pacs.example."),
        ("[192.0.2.7]:104", "192.0.2.7:104"),
        ("pacs:00104", "pacs:104"),
    ],
)
def test_forms_of_which_the_text_is_plainer(text: str, plain: str) -> None:
    assert str(parse_address(text)) == plain
    assert parse_address(text) == parse_address(plain)


BAD_TITLE = "contains a backslash, a control character or a non-ASCII character"
TOO_LONG = "is too long (63 characters between dots, 253 in all)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the host is missing"),
        (":104", "the host is missing"),
        ("X@", "the host is missing"),
        ("X@:104", "the host is missing"),
        ("[]:104", "the host is missing"),
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
        ("[fe80::1%]", '"fe80::1%" is not a host name'),
        ("[fe80::1%a b]", '"fe80::1%a b" is not a host name'),
        ("[pacs:104]", '"pacs:104" is not a host name'),
        ("[[pacs]]", '":PORT" must follow the bracket, not "]"'),
        (
            "pacs:104:105",
            '"pacs:104:105" has several colons but is not an IPv6 address (with a port, write [IPv6]:PORT)',
        ),
        ("300.1.1.1:104", '"300.1.1.1" is not an IPv4 address'),
        ("10.1", '"10.1" is not an IPv4 address'),
        ("[10.1]", '"10.1" is not an IPv4 address'),
        ("104", '"104" is not a host; write HOST:104 as one argument'),
        ("X@11112", '"11112" is not a host; write HOST:11112 as one argument'),
        ("pacs 104", '"pacs 104" is not a host; write pacs:104'),
        ("X@pacs 104", '"pacs 104" is not a host; write pacs:104'),
        ("dicom://X@pacs:104", '"dicom://X@pacs:104" is a URL'),
        ("X@https://pacs", '"X@https://pacs" is a URL'),
        ("pa cs", '"pa cs" is not a host name'),
        ("pacs..example", '"pacs..example" is not a host name'),
        (".", '"." is not an IPv4 address'),
        ("-pacs", '"-pacs" is not a host name'),
        ("pacs/x", '"pacs/x" is not a host name'),
        ("pacs\n", '"pacs\\n" is not a host name'),
        ("pa\u200bcs", '"pa\\u200bcs" is not a host name'),  # zero width space
        ("pa\u00adcs:104", '"pa\\xadcs" is not a host name'),  # soft hyphen
        ("\ufeffpacs", '"\\ufeffpacs" is not a host name'),  # byte order mark
        ("ü" * 64, f'"{"ü" * 64}" is not a host name'),
        ("x" * 64, f'the host name "{"x" * 64}" {TOO_LONG}'),
        (".".join(["x" * 63] * 4), f'the host name "{".".join(["x" * 63] * 4)}" {TOO_LONG}'),
        ("@pacs", "the AE title is empty"),
        ("    @pacs", "the AE title is empty"),
        ("SEVENTEEN-LETTERS@pacs", 'the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed'),
        ("A\\B@pacs", rf"the AE title 'A\\B' {BAD_TITLE}"),
        ("A\tB@pacs", rf"the AE title 'A\tB' {BAD_TITLE}"),
        ("A\x7fB@pacs", rf"the AE title 'A\x7fB' {BAD_TITLE}"),
        ("ÄB@pacs", f"the AE title 'ÄB' {BAD_TITLE}"),
    ],
)
def test_every_bad_form_has_its_message(text: str, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert str(caught.value) == why + FORM
    assert issubclass(AddressError, ValueError)
    assert (caught.value.kind, caught.value.phase) == ("address", None)


@pytest.mark.parametrize("text", [None, 104, b"pacs"])
def test_an_address_is_text(text: object) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)  # type: ignore[arg-type]
    assert str(caught.value) == f"the address must be text, not {text!r}{FORM}"


AE_CHARACTERS = "".join(map(chr, range(32, 127))).replace("\\", "")
titles = st.text(AE_CHARACTERS, min_size=1, max_size=16).map(lambda text: text.strip().replace("://", "") or "X")
labels = st.text("az09_-", min_size=1, max_size=30).map(lambda text: f"x{text}x")
names = st.lists(labels, min_size=1, max_size=3).map(".".join)
zones = st.sampled_from(["1", "eth0", "en0.100", "Wi-Fi_2"])
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).map(str)
hosts = names | v4 | v6 | st.builds("{}%{}".format, v6, zones)
calm = settings(deadline=None)  # the machine may be busy
addresses = st.builds(Address, st.none() | titles, hosts, st.none() | st.integers(1, 65535))


@calm
@given(addresses)
def test_a_valid_address_survives_its_text(address: Address) -> None:
    assert parse_address(str(address)) == address


@calm
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


@calm
@given(hosts)
def test_brackets_may_stand_around_any_host(host: str) -> None:
    assert parse_address(f"[{host}]:104") == Address(None, host, 104)


@calm
@given(v6)
def test_a_bare_ipv6_literal_is_taken_whole(host: str) -> None:
    assert ipaddress.ip_address(parse_address(host).host) == ipaddress.ip_address(host)
    assert parse_address(host).port is None


@pytest.mark.parametrize(
    ("titles", "message_id", "why"),
    [
        (("  ", "Y"), 1, "the AE title is empty"),
        (("X", "Y" * 17), 1, f'the AE title "{"Y" * 17}" has 17 characters, 16 are allowed'),
        (("X", "A\\B"), 1, rf"the AE title 'A\\B' {BAD_TITLE}"),
        ((7, "Y"), 1, "the AE title must be text, not 7"),
        (("X", "Y"), 65536, "the message ID must be in the range 0-65535, not 65536"),
        (("X", "Y"), -1, "the message ID must be in the range 0-65535, not -1"),
    ],
)
@pytest.mark.parametrize("verb", [echo.send, echo.probe])
def test_a_wrong_argument_is_refused_like_one_in_the_address(
    verb: Callable[..., object], titles: tuple[str, str], message_id: int, why: str
) -> None:
    with pytest.raises(AddressError) as caught:
        verb("127.0.0.1:1", *titles, message_id)
    assert (str(caught.value), caught.value.kind, caught.value.phase) == (why, "address", None)
