"""What is asked and what comes of it: requests, identities, results, errors and their hints (chapters 2 and 4)."""

from __future__ import annotations

import ast
import copy
import gc
import inspect
import json
import pickle
import socket
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from rawpeer import Link, RawPeer, associate_ac, close, command_pdu, echo_rsp_command

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
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert [request(address, tls=tls).port for address in ("pacs", "pacs:104")] == [2762, 104]


def test_a_title_that_is_not_the_default_wins_over_the_address() -> None:
    used = {
        ("pacs", "ANY-SCP"): "ANY-SCP", ("pacs", "OPTION"): "OPTION", ("ADDRESS@pacs", "ANY-SCP"): "ADDRESS",
        ("ADDRESS@pacs", " ANY-SCP "): "ADDRESS", ("ADDRESS@pacs", "OPTION"): "OPTION",
        ("ADDRESS@pacs", "any-scp"): "any-scp", ("ANY-SCP@pacs", "OPTION"): "OPTION", ("pacs", "  PADDED "): "PADDED",
        ("pacs", "SIXTEEN-LETTERS!"): "SIXTEEN-LETTERS!",
    }  # fmt: skip
    assert {given: request(*given).called_ae_title for given in used} == used


FORM = "; expected [AE-TITLE@]HOST[:PORT]"
CHARACTERS = "contains a backslash, a control character or a non-ASCII character"
SECONDS = "timeout must be a number above 0 and up to 86400"
NAMES = "transfer_syntaxes must be a sequence of 1 to 100 names"
BYTES = "max_pdu must be 0 (unlimited) or an integer from 16 to 4294967295"
SYNTAX = "a transfer syntax is one of implicit, explicit, deflated, big-endian or a UID"
WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    *((TypeError, f"{SECONDS}, not {wrong!r}", {"timeout": wrong}) for wrong in ("5", None)),
    (TypeError, "family must be 0, socket.AF_INET or socket.AF_INET6, not 'inet6'", {"family": "inet6"}),
    (TypeError, "source must be an IP address as text, not b'::1'", {"source": b"::1"}),
    (TypeError, "server_hostname must be a host name as text, not b'pacs'", {"server_hostname": b"pacs"}),
    (TypeError, "identity must be an Identity, not 'root'", {"identity": "root"}),
    *((TypeError, f"{BYTES}, not {wrong!r}", {"max_pdu": wrong}) for wrong in ("16384", 16384.0)),
    *((TypeError, f"{NAMES}, not {wrong!r}", {"transfer_syntaxes": wrong})
      for wrong in ("implicit", None, {"implicit"})),
    (TypeError, "tls must be an ssl.SSLContext, not True", {"tls": True}),
    *((TypeError, f"unknown option {wrong!r}; the options are timeout, family, source, tls, server_hostname, "
       "identity, max_pdu, transfer_syntaxes, abort", {wrong: 104}) for wrong in ("port", "label", "timeouts")),
    *((ValueError, f"{SECONDS}, not {wrong!r}", {"timeout": wrong})
      for wrong in (0, -1, 86401, 1e10, float("nan"), float("inf"))),
    *((ValueError, f"{BYTES}, not {wrong}", {"max_pdu": wrong}) for wrong in (-1, 1, 15, 1 << 32)),
    *((ValueError, f"{SYNTAX}, not {wrong!r}", {"transfer_syntaxes": (wrong,)})
      for wrong in ("jpeg", "1.2.x", "", "1.2.840.10008.01", "1." + "2" * 63, 1, "1.2\n")),
    *((ValueError, f"{NAMES}, not {wrong!r}", {"transfer_syntaxes": wrong})
      for wrong in ((), ["implicit"] * 101)),
    (ValueError, "family must be 0, socket.AF_INET or socket.AF_INET6, not 1", {"family": 1}),
    (ValueError, "server_hostname must be a host name as text, not ''", {"server_hostname": ""}),
    (ValueError, "server_hostname must be a host name as text, not 'a\\nb'", {"server_hostname": "a\nb"}),
    (AddressError, f"the host is missing{FORM}", {"address": ""}),
    (AddressError, f"the address must be text, not ('pacs', 104){FORM}", {"address": ("pacs", 104)}),
    (AddressError, f"the port 70000 is not in the range 1-65535{FORM}", {"address": Address(None, "pacs", 70000)}),
    (AddressError, f"the AE title 'A\\\\' {CHARACTERS}{FORM}", {"address": Address("A\\", "x", 1)}),
    (AddressError, "the AE title is empty", {"called": ""}),
    (AddressError, "the AE title is empty", {"calling": "   "}),
    (AddressError, f'the AE title "{17 * "X"}" has 17 characters, 16 are allowed', {"called": 17 * "X"}),
    (AddressError, "the AE title must be text, not None", {"calling": None}),
    (AddressError, "the AE title must be text, not b'ME'", {"calling": b"ME"}),
    *((AddressError, f"the AE title {wrong!r} {CHARACTERS}", {"calling": wrong})
      for wrong in ("A\\B", "A\nB", "ÄÖ", "A\0")),
]  # fmt: skip


def refusal(call: Callable[..., object], given: dict[str, Any]) -> tuple[type[Exception], str] | None:
    """The exception that a call raises."""
    try:
        call(**given)
    except Exception as error:
        return type(error), str(error)
    return None


def test_what_is_wrong_is_refused_and_told() -> None:
    assert [refusal(request, given) for *_, given in WRONG] == [(error, why) for error, why, _ in WRONG]


def test_a_source_must_be_an_address_of_this_host_and_of_the_family() -> None:
    for source in ("192.0.2.1", "localhost", "", "\udcff", "::1"):
        error, why = refusal(request, {"source": source, "family": socket.AF_INET}) or (None, "")
        assert error is ValueError
        assert why.startswith(f"source must be an IP address of this host, not {source!r}: ")


# --- Identities ------------------------------------------------------------------------------------------------------

SECRET = "hush-hush"  # a made-up one


def test_an_identity_shows_nothing() -> None:
    for identity in (
        Identity(user="root", password=SECRET), Identity(user=SECRET), Identity(jwt=SECRET),
        Identity(saml=SECRET.encode()), Identity(kerberos=SECRET.encode()),
    ):  # fmt: skip
        asked = request(identity=identity)
        shown = f"{identity}{identity!r}{asked}{vars(asked)}"
        assert SECRET not in shown
        assert "root" not in shown
        for reveal in (vars, pickle.dumps, copy.copy, copy.deepcopy, lambda each: pickle.dumps(request(identity=each))):
            with pytest.raises(TypeError) as caught:
                reveal(identity)
            assert SECRET not in str(caught.value)


def test_an_identity_is_one_of_its_kinds() -> None:
    refused: dict[tuple[type[Exception], str], list[dict[str, Any]]] = {
        (ValueError, "an identity is a user, with or without a password, or one of kerberos, saml and jwt"): [
            {}, {"password": "x"}, {"user": "x", "jwt": "y"}, {"jwt": "x", "password": "y"}],
        (ValueError, "an identity must not be empty, nor longer than 65,000 bytes"): [
            {"user": ""}, {"saml": b""}, {"user": "x", "password": ""}, {"user": "x" * 65001}, {"saml": "x" * 65001},
            {"user": "x", "password": "y" * 65000}, {"user": "x" * 33000, "password": "y" * 33000}],
        (TypeError, "the parts of an identity must be str or bytes"): [
            {"user": 5}, {"jwt": ["x"]}, {"user": "x", "password": 5}],
    }  # fmt: skip
    for why, wrong in refused.items():
        assert [refusal(Identity, given) for given in wrong] == [why] * len(wrong)
    assert not refusal(Identity, {"user": "x", "password": "y" * 64999})


# --- Results ---------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)
REFUSED = echo.Unreachable("connection refused", errno=111)
COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda what: pickle.loads(pickle.dumps(what))]


def result(**changes: Any) -> EchoResult:
    settled: dict[str, Any] = {
        "address": Address("PACS", "192.0.2.7", None), "port": 104, "called_ae_title": "PACS", "message_id": 7,
        "calling_ae_title": "ME", "started_at": NOON, "status": 0,
        "timings": echo._Timings({Phase.connect: 0.002, Phase.echo: 0.001, Phase.release: 0.5}),
        "peer": echo.Peer("1.2.3", "X", 0, "1.2.840.10008.1.2"),
        "tls": echo.TLSInfo("TLSv1.3", "X", NOON, True, "CN=a", "CN=b", ("a", "b")), "notes": ("odd",),
    }  # fmt: skip
    return EchoResult(**{**settled, **changes})


def test_a_result_is_immutable_and_a_value() -> None:
    first = result()
    for twin in (first, first._replace(), *(make(first) for make in COPIES)):
        assert len({first, twin, result(message_id=8)}) == 2
        for whole in (twin, twin.peer, twin.tls):
            for name in whole._fields:
                with pytest.raises(AttributeError):
                    setattr(whole, name, None)
        for name in ("ok", "status_text", "kind", "total", "target", "hint", "phase", "new"):
            with pytest.raises(AttributeError):
                setattr(twin, name, None)
        for method, *arguments in (
            ("__setitem__", Phase.echo, 0.0), ("__delitem__", Phase.echo), ("clear",), ("popitem",),
            ("update", {Phase.echo: 0.0}), ("pop", Phase.echo), ("setdefault", Phase.tls, 0.0),
            ("__ior__", {Phase.echo: 0.0}),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="a result cannot be changed"):
                getattr(twin.timings, method)(*arguments)
        assert twin == result()


def test_what_a_result_says_of_itself() -> None:
    for changes, told in (
        ({}, (True, "ok", "Success", None)),
        ({"status": 0x0110}, (False, "status", "processing failure", Phase.echo)),
        ({"status": None, "error": REFUSED}, (False, "unreachable", None, None)),
    ):
        made = result(**changes)
        assert (made.ok, made.kind, made.status_text, made.phase) == told
        assert bool(made) is made.ok
        assert bool(made.hint) == (made.kind == "status")
        assert made.target == "PACS@192.0.2.7:104"
        assert made.total == pytest.approx(0.003)
        shown = made.to_dict()
        assert json.loads(json.dumps(shown)) == shown
        assert shown["phases_ms"] == {"connect": 2, "echo": 1, "release": 500}
        assert (shown["error"] or {}).get("kind", "ok") == made.kind
    assert result(released=True).total == pytest.approx(0.503)


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


def test_an_error_keeps_its_kind_and_its_facts() -> None:
    assert (set(EchoError.__subclasses__()), EchoError.__bases__) == (set(ERRORS), (Exception,))
    for error, (kind, also, facts) in ERRORS.items():
        made = error("what happened", case="this host", hint="what to do", detail="in the standard's terms", **facts)
        assert made.phase is None
        made.phase = Phase.connect
        vars(made)["__notes__"] = ["as add_note() leaves it"]
        for twin in (made, *(make(made) for make in COPIES)):
            assert type(twin) is error
            assert {base for base in (ValueError, ConnectionError, TimeoutError) if isinstance(twin, base)} == also
            assert (str(twin), repr(twin), vars(twin)) == ("what happened", repr(made), vars(made))
            assert (twin.message, twin.kind, twin.phase, twin.hint) == (
                "what happened", kind, Phase.connect, "what to do",
            )  # fmt: skip
            assert twin.facts == facts == {name: getattr(twin, name) for name in facts}
            assert twin.title
            shown = result(status=None, error=twin).to_dict()["error"]
            assert shown == {"kind": kind, "phase": "connect", "message": "what happened", "hint": "what to do",
                             "detail": "in the standard's terms", **facts}  # fmt: skip


# --- Hints -----------------------------------------------------------------------------------------------------------

# The phases in which each kind is raised; what happens in the release is a note, and has no hint.
PHASES = {
    "unreachable": ["resolve", "connect"], "lost": ["associate", "echo"], "tls": ["tls", "associate"],
    "timeout": ["resolve", "connect", "tls", "associate", "echo"], "rejected": ["associate"],
    "not-supported": ["associate"], "aborted": ["associate", "echo"], "protocol": ["associate", "echo"],
    "status": ["echo"],
}  # fmt: skip
SOURCE = ast.parse(inspect.getsource(echo))
TEXTS = {
    each.value
    for statement in SOURCE.body
    if not (isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", "") == "_HINTS")
    for each in ast.walk(statement)
    if isinstance(each, ast.Constant) and isinstance(each.value, str)
}


def test_the_case_of_each_hint_can_occur() -> None:
    own_words = TEXTS - {phase.name for phase in Phase}
    assert [
        (kind, case) for kind, case in _HINTS if case.replace(" over TLS", "") not in {*PHASES[kind], *own_words}
    ] == []


def messages() -> Iterator[tuple[str, str]]:
    """Kind and message (or case) of each error that the module raises with words of its own, and once with others."""
    yield from ((kind, "in the words of others") for kind in PHASES)
    for kind, texts in {
        "tls": {*echo._VERIFY_ERRORS.values(), *echo._TLS_FAILURES}, "rejected": echo._REJECT_REASONS.values(),
        "not-supported": echo._CONTEXT_RESULTS.values(), "status": {*echo._STATUS_TEXTS.values()} - {"Success"},
    }.items():  # fmt: skip
        yield from ((kind, text) for text in texts)
    kinds = {error.__name__: kind for error, (kind, _, _) in ERRORS.items() if kind != "address"}
    for call in ast.walk(SOURCE):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in kinds:
            given = [call.args[0], *(each.value for each in call.keywords if each.arg == "case")][-1]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield kinds[call.func.id], given.value


def test_every_message_has_a_hint_or_its_phase_has() -> None:
    unhinted = {
        (kind, message, phase)
        for kind, message in messages()
        for phase in PHASES[kind]
        if not echo._hint(kind, message, phase)
    }
    others = {("tls", "tls"), ("tls", "associate"), ("unreachable", "resolve")}
    assert unhinted == {(kind, "in the words of others", phase) for kind, phase in others}


def test_a_hint_names_whom_it_is_about() -> None:
    """Filled in at one place, with the titles and the address that were used; braces of a title are no template."""

    def hint(kind: str, case: str) -> str:
        identity = Identity(user="x") if "identity" in case else None
        asked = request("{called}@pacs", calling="{0}", identity=identity)
        if kind == "status":
            status = next((code for code, text in echo._STATUS_TEXTS.items() if text == case), 0x0110)
            return result(status=status, called_ae_title="{called}", calling_ae_title="{0}").hint
        if "over TLS" in case:
            asked.tls = object()
        story = echo._Echo(asked, 1, 10.0)
        story.wire.local = "[2001:db8::9]:51514"
        error = next(each for each in ERRORS if each.kind == kind)("x", case=case)
        story._explain(error, Phase[case] if case in Phase.__members__ else Phase.associate)
        return error.hint

    places = {"called": "{called}", "calling": "{0}", "local": "2001:db8::9"}
    assert {each: hint(*each) for each in _HINTS} == {each: text.format(**places) for each, text in _HINTS.items()}


# --- Memory ----------------------------------------------------------------------------------------------------------

JUNK = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100_000,
    associate_ac(version_name="x" * 50_000) + command_pdu(echo_rsp_command(1, 0x0110, error_comment="x" * 50_000)),
    associate_ac([(1, 0, "1." * 20_000)]) + command_pdu(echo_rsp_command(2)) + b"x" * 60_000,
]  # fmt: skip


def test_kept_failures_keep_facts_and_not_frames_or_buffers() -> None:
    """Less than 8 kB for each, of a peer that sends 100 kB of junk."""
    with RawPeer(*((Link.receive, junk, close) for junk in JUNK * 20)) as peer:
        tracemalloc.start()
        try:
            kept = [echo.probe(peer.address, message_id=1) for _ in range(60)]
            assert {each.kind for each in kept} == {"protocol", "status"}
            for error in filter(None, (each.error for each in kept)):
                assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
            gc.collect()
            taken, _ = tracemalloc.get_traced_memory()
            kept.clear()
            gc.collect()
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert taken - left < 60 * 8000
