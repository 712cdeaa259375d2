"""What is asked and what comes of it: requests, identities, results, errors and their hints (chapters 2 and 4)."""

from __future__ import annotations

import ast
import contextlib
import copy
import gc
import inspect
import json
import pickle
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import cycle
from typing import Any

import pytest
from rawpeer import associate_ac, command_pdu, echo_rsp_command

import dicom_echo as echo
from dicom_echo import _HINTS, Address, AddressError, EchoError, EchoResult, Identity, Phase, _Request

# --- Requests --------------------------------------------------------------------------------------------------------


def request(address: Any = "PACS@192.0.2.7:11112", called: Any = "ANY-SCP", calling: Any = "ME", **options: Any) -> Any:
    return _Request(address, called, calling, **options)


def test_a_request_is_settled_before_anything_is_sent() -> None:
    asked = request("pacs", transfer_syntaxes=["explicit", "1.2.840.10008.1.2"], source="127.0.0.1")
    assert (asked.target, asked.port, asked.family) == ("ANY-SCP@pacs:104", 104, socket.AF_INET)
    assert asked.transfer_syntaxes == ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
    assert (asked.timeout, asked.max_pdu, asked.abort) == (10, 16382, False)
    assert request("[fe80::1%eth0]:104").target == "ANY-SCP@[fe80::1%eth0]:104"
    assert request(Address("PACS", "::1", None)).target == "PACS@[::1]:104"


def test_the_port_is_that_of_tls_where_none_is_given() -> None:
    import ssl

    assert request("pacs", tls=ssl.create_default_context()).port == 2762
    assert request("pacs:104", tls=ssl.create_default_context()).port == 104


@pytest.mark.parametrize(
    ("address", "argument", "used"),
    [
        ("pacs", "ANY-SCP", "ANY-SCP"), ("pacs", "OPTION", "OPTION"), ("ADDRESS@pacs", "ANY-SCP", "ADDRESS"),
        ("ADDRESS@pacs", " ANY-SCP ", "ADDRESS"), ("ADDRESS@pacs", "OPTION", "OPTION"),
        ("ADDRESS@pacs", "any-scp", "any-scp"), ("ANY-SCP@pacs", "OPTION", "OPTION"), ("pacs", "  PADDED ", "PADDED"),
        ("pacs", "SIXTEEN-LETTERS!", "SIXTEEN-LETTERS!"),
    ],
)  # fmt: skip
def test_a_title_that_is_not_the_default_wins_over_the_address(address: str, argument: str, used: str) -> None:
    assert request(address, argument).called_ae_title == used


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": "5"}, "timeout must be a number of seconds, not '5'"),
        ({"timeout": None}, "timeout must be a number of seconds, not None"),
        ({"family": "inet6"}, "family must be socket.AF_INET or socket.AF_INET6, not 'inet6'"),
        ({"source": b"::1"}, "source must be an IP address as text, not b'::1'"),
        ({"server_hostname": b"pacs"}, "server_hostname must be a host name as text, not b'pacs'"),
        ({"identity": "root"}, "identity must be an Identity, not 'root'"),
        ({"max_pdu": "16384"}, "max_pdu must be a number of bytes, not '16384'"),
        ({"max_pdu": 16384.0}, "max_pdu must be a number of bytes, not 16384.0"),
        ({"transfer_syntaxes": "implicit"}, "transfer_syntaxes must be a sequence of names, not 'implicit'"),
        ({"transfer_syntaxes": None}, "transfer_syntaxes must be a sequence of names, not None"),
        ({"transfer_syntaxes": {"implicit"}}, "transfer_syntaxes must be a sequence of names, not {'implicit'}"),
        ({"tls": True}, "tls must be an ssl.SSLContext, not True"),
        ({"port": 104}, "unknown option 'port'; the options are timeout, family, source, tls, server_hostname, "
         "identity, max_pdu, transfer_syntaxes, abort"),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_a_wrong_type_is_a_type_error(options: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError) as caught:
        request(**options)
    assert str(caught.value) == why


SECONDS = "timeout must be more than 0 and at most 86400 seconds"
BYTES = "max_pdu must be 0 (unlimited) or in the range 16-4294967295"
SYNTAX = "a transfer syntax is one of implicit, explicit, deflated, big-endian or a UID"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        *(({"timeout": wrong}, f"{SECONDS}, not {wrong!r}") for wrong in (0, -1, 86401, float("nan"), float("inf"))),
        *(({"max_pdu": wrong}, f"{BYTES}, not {wrong}") for wrong in (-1, 1, 15, 1 << 32)),
        *(({"transfer_syntaxes": (wrong,)}, f"{SYNTAX}, not {wrong!r}")
          for wrong in ("jpeg", "1.2.x", "", "1.2.840.10008.01", "1." + "2" * 63, 1, "1.2\n")),
        ({"transfer_syntaxes": ()}, "transfer_syntaxes must be 1 to 100 names, not ()"),
        ({"family": 1}, "family must be 0, socket.AF_INET or socket.AF_INET6, not 1"),
        ({"server_hostname": ""}, "server_hostname must be a host name, not ''"),
        ({"server_hostname": "a\nb"}, "server_hostname must be a host name, not 'a\\nb'"),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_out_of_range_is_a_value_error(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why) + r"\Z"):
        request(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"source": "192.0.2.1"}, {"source": "localhost"}, {"source": ""}, {"source": "\udcff"},
        {"source": "127.0.0.1", "family": socket.AF_INET6},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_source_must_be_an_address_of_this_host(options: dict[str, Any]) -> None:
    why = f"source must be an IP address of this host, not {options['source']!r}: "
    with pytest.raises(ValueError, match=re.escape(why) + "."):
        request(**options)


@pytest.mark.parametrize(
    ("titles", "why"),
    [
        ({"called": ""}, "the AE title is empty"),
        ({"calling": "   "}, "the AE title is empty"),
        ({"called": "SEVENTEEN-LETTERS"}, 'the AE title "SEVENTEEN-LETTERS" has 17 characters, 16 are allowed'),
        ({"calling": None}, "the AE title must be text, not None"),
        ({"calling": b"ME"}, "the AE title must be text, not b'ME'"),
        *(({"calling": bad}, f"the AE title {bad!r} contains a backslash, a control character or a non-ASCII character")
          for bad in ("A\\B", "A\nB", "ÄÖ", "A\0")),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_title_is_an_address_error(titles: dict[str, Any], why: str) -> None:
    with pytest.raises(AddressError) as caught:
        request(**titles)
    assert (str(caught.value), caught.value.kind, caught.value.phase) == (why, "address", None)


@pytest.mark.parametrize(
    "address", [None, 104, b"pacs", ("pacs", 104), "", "pacs:0", Address(None, "pacs", 70000), Address("A\\", "x", 1)]
)
def test_what_is_no_address_is_an_address_error(address: object) -> None:
    with pytest.raises(AddressError):
        request(address)


# --- Identities ------------------------------------------------------------------------------------------------------

SECRET = "hush-hush"  # a made-up one


@pytest.mark.parametrize(
    "identity",
    [
        Identity(user="root", password=SECRET), Identity(user=SECRET), Identity(jwt=SECRET),
        Identity(saml=SECRET.encode()), Identity(kerberos=SECRET.encode()),
    ],
)  # fmt: skip
def test_an_identity_shows_nothing(identity: Identity) -> None:
    asked = request(identity=identity)
    shown = f"{identity}{identity!r}{asked}{vars(asked)}"
    assert SECRET not in shown
    assert "root" not in shown
    for reveal in (vars, pickle.dumps, copy.copy, copy.deepcopy, lambda each: pickle.dumps(request(identity=each))):
        with pytest.raises(TypeError) as caught:
            reveal(identity)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, ValueError), ({"password": "x"}, ValueError), ({"user": "x", "jwt": "y"}, ValueError),
        ({"jwt": "x", "password": "y"}, ValueError), ({"user": ""}, ValueError), ({"saml": b""}, ValueError),
        ({"user": "x" * 65001}, ValueError), ({"user": "x", "password": "y" * 65000}, ValueError),
        ({"user": 5}, TypeError), ({"jwt": ["x"]}, TypeError), ({"user": "x", "password": 5}, TypeError),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_an_identity_is_one_of_its_kinds(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="an identity"):
        Identity(**given)


# --- Results ---------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda what: what,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
    "replace": lambda what: what._replace(),
}


def result(**changes: Any) -> EchoResult:
    settled: dict[str, Any] = {
        "address": Address("PACS", "192.0.2.7", None), "port": 104, "called_ae_title": "PACS", "message_id": 7,
        "calling_ae_title": "ME", "started_at": NOON, "status": 0,
        "timings": echo._Timings({Phase.connect: 0.002, Phase.echo: 0.001, Phase.release: 0.5}),
        "peer": echo.Peer("1.2.3", "X", 0, "1.2.840.10008.1.2"),
        "tls": echo.TLSInfo("TLSv1.3", "X", NOON, True, "CN=a", "CN=b", ("a", "b")), "notes": ("odd",),
    }  # fmt: skip
    return EchoResult(**{**settled, **changes})


REFUSED = echo.Unreachable("connection refused", errno=111)


@pytest.mark.parametrize("how", COPIES)
def test_a_result_is_immutable_and_a_value(how: str) -> None:
    first, twin = result(), COPIES[how](result())
    assert first == twin
    assert len({first, twin, result(message_id=8)}) == 2
    for name in (*twin._fields, "ok", "status_text", "kind", "total", "target", "hint", "phase", "new"):
        with pytest.raises(AttributeError):
            setattr(twin, name, None)
    for part in (twin.peer, twin.tls):
        with pytest.raises(AttributeError):
            part.names = part.max_pdu = None
    timings = twin.timings
    for change in (
        lambda: timings.__setitem__(Phase.echo, 0.0), lambda: timings.__delitem__(Phase.echo), timings.clear,
        lambda: timings.update({Phase.echo: 0.0}), lambda: timings.pop(Phase.echo), timings.popitem,
        lambda: timings.setdefault(Phase.tls, 0.0), lambda: timings.__ior__({Phase.echo: 0.0}),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="a result cannot be changed"):
            change()
    assert twin == result()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, (True, "ok", "Success", None)),
        ({"status": 0x0110}, (False, "status", "processing failure", Phase.echo)),
        ({"status": None, "error": REFUSED}, (False, "unreachable", None, None)),
    ],
)
def test_what_a_result_says_of_itself(changes: dict[str, Any], told: tuple[object, ...]) -> None:
    made = result(**changes)
    assert (made.ok, made.kind, made.status_text, made.phase) == told
    assert bool(made) is made.ok
    assert made.target == "PACS@192.0.2.7:104"
    assert made.total == pytest.approx(0.003)
    assert result(released=True).total == pytest.approx(0.503)
    shown = made.to_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert shown["phases_ms"] == {"connect": 2, "echo": 1, "release": 500}
    assert (shown["error"] or {}).get("kind", "ok") == made.kind


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0x0000, "Success"), (0x0122, "SOP class not supported"), (0x0124, "not authorized"),
        (0x0213, "resource limitation"), (0x01FF, "an unnamed failure"), (0xA700, "an unnamed failure"),
        (0xC000, "an unnamed failure"), (0x0001, "an unnamed warning"), (0xB000, "an unnamed warning"),
        (0xFE00, "cancelled"), (0xFF00, "pending"), (0xFF01, "pending"), (0x7000, "not a status of the standard"),
    ],
)  # fmt: skip
def test_every_status_has_words(status: int, text: str) -> None:
    assert result(status=status).status_text == text
    assert bool(result(status=status).hint) == (status != 0)


# --- Errors ----------------------------------------------------------------------------------------------------------

ERRORS: dict[type[EchoError], tuple[str, set[type], dict[str, object]]] = {
    AddressError: ("address", {ValueError}, {}),
    echo.Unreachable: ("unreachable", {ConnectionError}, {"errno": 111}),
    echo.ConnectionLost: ("lost", {ConnectionError}, {}),
    echo.TLSFailed: ("tls", {ConnectionError}, {}),
    echo.TimedOut: ("timeout", {ConnectionError, TimeoutError}, {"timeout": 10.0}),
    echo.Rejected: ("rejected", {ValueError}, {"result": 1, "source": 1, "reason": 7}),
    echo.NotSupported: ("not-supported", {ConnectionError}, {"result": 3}),
    echo.Aborted: ("aborted", {ConnectionError}, {"source": 2, "reason": 1}),
    echo.ProtocolError: ("protocol", {ConnectionError}, {"received": "48"}),
}


def test_the_errors_are_those_of_the_contract() -> None:
    assert set(EchoError.__subclasses__()) == set(ERRORS)
    assert EchoError.__bases__ == (Exception,)


@pytest.mark.parametrize("how", ["itself", "copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_keeps_its_kind_and_its_facts(error: type[EchoError], how: str) -> None:
    kind, also, facts = ERRORS[error]
    made = error("what happened", case="this host", hint="what to do", detail="in the standard's terms", **facts)
    made.phase = Phase.connect
    twin = COPIES[how](made)
    assert type(twin) is error
    assert {base for base in (ValueError, ConnectionError, TimeoutError) if isinstance(twin, base)} == also
    assert (str(twin), twin.message, twin.kind, twin.phase) == ("what happened", "what happened", kind, Phase.connect)
    assert (twin.hint, twin.detail, twin._case) == ("what to do", "in the standard's terms", "this host")
    assert twin.facts == facts == {name: getattr(twin, name) for name in facts}
    assert twin.title
    shown = result(status=None, error=twin).to_dict()["error"]
    assert shown == {"kind": kind, "phase": "connect", "message": "what happened", "hint": "what to do",
                     "detail": "in the standard's terms", **facts}  # fmt: skip


# --- Hints -----------------------------------------------------------------------------------------------------------

# The phases in which each kind is raised; what happens in the release is a note, and has no hint.
PHASES = {
    "unreachable": ["resolve", "connect"],
    "lost": ["associate", "echo"],
    "tls": ["tls", "associate"],
    "timeout": ["resolve", "connect", "tls", "associate", "echo"],
    "rejected": ["associate"],
    "not-supported": ["associate"],
    "aborted": ["associate", "echo"],
    "protocol": ["associate", "echo"],
    "status": ["echo"],
}
NONE_IS_WANTED = {("unreachable", "resolve")}  # each of its messages has its own
SOURCE = ast.parse(inspect.getsource(echo))
TEXTS = {
    each.value
    for statement in SOURCE.body
    if not (isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == "_HINTS")
    for each in ast.walk(statement)
    if isinstance(each, ast.Constant) and isinstance(each.value, str)
}


@pytest.mark.parametrize(("kind", "case"), _HINTS)
def test_the_case_of_a_hint_can_occur(kind: str, case: str) -> None:
    phases = PHASES[kind.replace(" over TLS", "")]
    assert case in phases or case.replace(" with identity", "") in TEXTS - {phase.name for phase in Phase}


def messages() -> Iterator[tuple[str, str]]:
    """Kind and message (or case) of each error that the module raises with words of its own."""
    yield from (("tls", text) for text in {*echo._VERIFY_ERRORS.values(), *echo._TLS_FAILURES})
    yield from (("tls", text) for text in echo._ALERTS_ON_OUR_CERTIFICATE.values())
    yield from (("rejected", text) for text in echo._REJECT_REASONS.values())
    yield from (("not-supported", text) for text in echo._CONTEXT_RESULTS.values())
    yield from (("status", text) for text in echo._STATUS_TEXTS.values() if text != "Success")
    kinds = {error.__name__: kind for error, (kind, _, _) in ERRORS.items() if kind != "address"}
    for call in ast.walk(SOURCE):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in kinds:
            given = [call.args[0], *(each.value for each in call.keywords if each.arg == "case")][-1]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield kinds[call.func.id], given.value


@pytest.mark.parametrize(("kind", "message"), sorted(set(messages())))
def test_every_message_has_a_hint_or_its_phase_has(kind: str, message: str) -> None:
    for phase in PHASES[kind]:
        for tls in (False, True):
            assert echo._hint(kind, message, phase, tls=tls)


@pytest.mark.parametrize(("kind", "phase"), [(kind, phase) for kind in PHASES for phase in PHASES[kind]])
def test_every_phase_has_a_hint_where_not_every_message_has(kind: str, phase: str) -> None:
    any_message = kind in ("timeout", "lost", "aborted", "protocol", "status") or (kind, phase) == (kind, "connect")
    assert bool(echo._hint(kind, phase)) == (any_message and (kind, phase) not in NONE_IS_WANTED)


@pytest.mark.parametrize(("kind", "case"), _HINTS)
def test_a_hint_names_whom_it_is_about(kind: str, case: str) -> None:
    """Filled in at one place, with the titles and the address that were used; braces of a title are no template."""
    asked = request("{called}@pacs", calling="{0}", identity=Identity(user="x") if "identity" in case else None)
    story = echo._Echo(asked, 1, 10.0)
    story.wire.local = "[2001:db8::9]:51514"
    if kind == "status":
        status = next((code for code, text in echo._STATUS_TEXTS.items() if text == case), 0x0110)
        hint = result(status=status, called_ae_title="{called}", calling_ae_title="{0}").hint
    else:
        error = next(each for each in ERRORS if each.kind == kind.replace(" over TLS", ""))(
            "x", case=case.replace(" with identity", "")
        )
        if "over TLS" in kind:
            object.__setattr__(asked, "tls", object())
        story._explain(error, Phase[case] if case in Phase.__members__ else Phase.associate)
        hint = error.hint
    places = {"called": "{called}", "calling": "{0}", "local": "2001:db8::9"}
    assert hint == _HINTS[kind, case].format(**places)


# --- Memory ----------------------------------------------------------------------------------------------------------

JUNK = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100_000,
    associate_ac(version_name="x" * 50_000) + command_pdu(echo_rsp_command(1, 0x0110, error_comment="x" * 50_000)),
    associate_ac([(1, 0, "1." * 20_000)]) + command_pdu(echo_rsp_command(2)) + b"x" * 60_000,
]  # fmt: skip


@contextlib.contextmanager
def talkative_peer() -> Iterator[str]:
    """Answers whatever it hears with 100 kB of junk, of each kind in turn."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:

        def serve() -> None:
            for junk in cycle(JUNK):
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if not connection.recv(1 << 16):
                        return
                    connection.sendall(junk)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        socket.create_connection(listener.getsockname()).close()
        thread.join(10)


def test_kept_failures_keep_facts_and_not_frames_or_buffers() -> None:
    with talkative_peer() as address:
        echo.probe(address)  # what is loaded on first use is not counted
        tracemalloc.start()
        try:
            kept = [echo.probe(address, message_id=1) for _ in range(1000)]
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {each.kind for each in kept} == {"protocol", "status"}
    errors = [each.error for each in kept if each.error]
    assert {(error.__traceback__, error.__context__, error.__cause__) for error in errors} == {(None, None, None)}
    assert taken < 8_000_000
