"""Chapter 5, the verbs: what they take, what they refuse before anything is sent, what they give back and leave."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import itertools
import json
import logging
import pickle
import re
import socket
import ssl
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import rawpeer
from canned import Canned, run_canned
from command import environment, run_process
from leaks import nothing_left_behind
from peers import Peer
from rawpeer import (
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    GOOD_SCRIPT,
    P_DATA_TF,
    Close,
    Endpoint,
    RawPeer,
    Script,
    closed_port,
    full_listener,
    script,
    silent_listener,
)

import dicom_echo as echo
from dicom_echo import Address, AddressError, Counter, EchoError, Phase

# For calls that a type checker would not let pass.
send: Any = echo.send
probe: Any = echo.probe
probe_many: Any = echo.probe_many


def probe_one(address: object, *arguments: Any, **options: Any) -> echo.EchoResult:
    """`probe_many` with one address, called as the other verbs are."""
    [result] = probe_many([address], *arguments, **options)
    assert isinstance(result, echo.EchoResult)
    return result


every_verb = pytest.mark.parametrize("verb", [send, probe, probe_one])


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with run_canned(live=64, silent=24) as peers:
        yield peers


def addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    return [endpoint.address for endpoint in endpoints]


class Guarded(RawPeer):
    """A good peer that knows whether anybody has connected since it was last asked.

    Connections are accepted in their order: nobody came before an echo that is the next to be received.
    """

    known = 0

    def is_untouched(self) -> bool:
        echo.send(self.address)
        before, self.known = self.known, len(self.received)
        return self.known == before + 1


@pytest.fixture(scope="module")
def guarded_by_all() -> Iterator[Guarded]:
    guarded = Guarded()
    with guarded:
        yield guarded


@pytest.fixture
def guarded(guarded_by_all: Guarded) -> Guarded:
    """A peer for those who must not reach it."""
    guarded_by_all.is_untouched()  # whatever was before
    return guarded_by_all


# --- The shape of the module -----------------------------------------------------------------------------------------

CONTRACT_NAMES = {
    "DEFAULT_CALLED_AE_TITLE", "DEFAULT_CALLING_AE_TITLE", "send", "probe", "probe_many", "parse_address", "Address",
    "Counter", "counter", "EchoResult", "Phase", "EchoError", "AddressError", "Unreachable", "ConnectionLost",
    "TLSFailed", "TimedOut", "Rejected", "NotSupported", "Aborted", "ProtocolError",
}  # fmt: skip


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(echo.__all__) >= CONTRACT_NAMES
    assert len(set(echo.__all__)) == len(echo.__all__)
    own = {name for name, value in vars(echo).items() if getattr(value, "__module__", None) == "dicom_echo"}
    assert {name for name in own if not name.startswith("_")} - set(echo.__all__) <= {"main", "Options"}
    assert (echo.DEFAULT_CALLED_AE_TITLE, echo.DEFAULT_CALLING_AE_TITLE) == ("ANY-SCP", "ECHOSCU")
    assert re.fullmatch(r"\d+\.\d+\.\d+", echo.__version__)
    assert ".".join(map(str, echo.__version_tuple__)) == echo.__version__


def public_objects() -> Iterator[tuple[str, object]]:
    for name in echo.__all__:
        value = getattr(echo, name)
        if isinstance(value, (type, type(echo.send))):
            yield name, value
        if isinstance(value, type):
            for member, what in vars(value).items():
                if not member.startswith("_") and isinstance(what, (property, type(echo.send))):
                    yield f"{name}.{member}", what


def test_every_public_object_has_a_docstring() -> None:
    for name, value in public_objects():
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), f"{name}: dataclasses and named tuples make one up"


@pytest.mark.parametrize("verb", [echo.send, echo.probe, echo.probe_many])
def test_the_signature_and_its_manual(verb: Callable[..., object]) -> None:
    first, *titles = list(inspect.signature(verb).parameters.values())[:4]
    assert first.kind is first.POSITIONAL_ONLY
    assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in titles)
    assert [(each.name, each.default) for each in titles] == [
        ("called_ae_title", "ANY-SCP"),
        ("calling_ae_title", "ECHOSCU"),
        ("message_id", echo.counter),
    ]
    manual = inspect.getdoc(verb) or ""
    assert all(f"\n{section}\n---" in manual for section in ("Parameters", "Returns", "Raises"))
    assert all(re.search(rf"^{each.name} : ", manual, re.MULTILINE) for each in (first, *titles))


def test_each_option_is_in_the_manual() -> None:
    assert all(f"\n{name} : " in (inspect.getdoc(echo.probe) or "") for name in echo.Options.__annotations__)


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (echo.AddressError, {ValueError}),
        (echo.Unreachable, {ConnectionError}),
        (echo.ConnectionLost, {ConnectionError}),
        (echo.TLSFailed, {ConnectionError}),
        (echo.TimedOut, {ConnectionError, TimeoutError}),
        (echo.Rejected, {ValueError}),
        (echo.NotSupported, {ConnectionError}),
        (echo.Aborted, {ConnectionError}),
        (echo.ProtocolError, {ConnectionError}),
    ],
)
def test_errors_are_also(kind: type[EchoError], bases: set[type]) -> None:
    everyone = {ValueError, ConnectionError, TimeoutError}
    assert {base for base in everyone if issubclass(kind, base)} == bases
    assert issubclass(kind, EchoError)


# --- Calls -----------------------------------------------------------------------------------------------------------


@every_verb
@pytest.mark.parametrize(
    ("arguments", "options"),
    [(("STORE", "ME", 7), {}), ((), {"message_id": 7, "calling_ae_title": " ME ", "called_ae_title": " STORE"})],
    ids=["as in the Rust package", "by keyword"],
)
def test_titles_and_message_id(peer: RawPeer, verb: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    assert verb(peer.address, *arguments, **options) in (0, True) or verb is not send
    conversation = peer.conversation()
    fields = conversation.request.called_field, conversation.request.calling_field
    assert fields == (b"STORE           ", b"ME              ")
    assert conversation.message_ids == [7]


def test_options_reach_the_wire(peer: RawPeer) -> None:
    assert echo.probe(peer.address, max_pdu=4096, transfer_syntaxes=["big-endian", "1.2.840.10008.1.2.1"]).ok
    request = peer.conversation().request
    assert request.max_length == 4096
    assert request.contexts[0].transfer_syntaxes == ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1")


@pytest.mark.parametrize(
    ("address", "argument", "used"),
    [
        ("", None, "ANY-SCP"),
        ("", "OPTION", "OPTION"),
        ("ADDRESS@", None, "ADDRESS"),
        ("ADDRESS@", "OPTION", "OPTION"),
        ("ADDRESS@", "ANY-SCP", "ADDRESS"),
        ("ADDRESS@", " ANY-SCP ", "ADDRESS"),
        ("ADDRESS@", "any-scp", "any-scp"),
        ("ANY-SCP@", "OPTION", "OPTION"),
        ("", "  PADDED ", "PADDED"),
        ("", "SIXTEEN-LETTERS!", "SIXTEEN-LETTERS!"),
    ],
)
def test_which_called_title_is_used(peer: RawPeer, address: str, argument: str | None, used: str) -> None:
    titles = {} if argument is None else {"called_ae_title": argument}
    result = probe(f"{address}127.0.0.1:{peer.port}", **titles)
    assert result.called_ae_title == used
    assert peer.conversation().request.called_field == used.ljust(16).encode()


def test_an_address_instead_of_a_text(peer: RawPeer) -> None:
    address = Address("STORE", "127.0.0.1", peer.port)
    assert [verb(address) and str(address) for verb in (probe, probe_one)] == [str(address)] * 2
    assert peer.conversation(1).request.called == "STORE"


def test_send_returns_the_status_that_is_no_success() -> None:
    with RawPeer(script(echo=rawpeer.echo_rsp(1, 0x0122))) as peer:
        assert echo.send(peer.address, message_id=1) == 0x0122


# --- Counter and message ids -----------------------------------------------------------------------------------------


def test_the_shared_counter_counts_up(peer: RawPeer) -> None:
    before = echo.probe(peer.address).message_id
    after = [echo.probe(peer.address).message_id, *(each.message_id for each in echo.probe_many([peer.address] * 2))]
    assert after == [(before + step - 1) % 0xFFFF + 1 for step in (1, 2, 3)]
    assert [peer.conversation(number).message_ids[0] for number in range(4)] == [before, *after]


def test_a_counter_of_ones_own_wraps_to_one(peer: RawPeer) -> None:
    mine = Counter()
    assert [echo.probe(peer.address, message_id=mine).message_id for _ in range(3)] == [1, 2, 3]
    assert [mine.increment() for _ in range(65534)] == [*range(4, 65536), 1, 2]


def test_the_counter_is_safe_in_threads() -> None:
    mine, interval = Counter(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            ids = list(pool.map(lambda _: mine.increment(), range(20_000)))
    finally:
        sys.setswitchinterval(interval)
    assert sorted(ids) == list(range(1, 20_001))


@pytest.mark.parametrize("message_id", [0, 1, 65535])
def test_message_ids_at_the_edges(peer: RawPeer, message_id: int) -> None:
    assert echo.probe(peer.address, message_id=message_id).message_id == message_id
    assert peer.conversation().message_ids == [message_id]


@every_verb
@pytest.mark.parametrize("message_id", [-1, 65536, "1", 1.5, 1.0, None, True])
def test_other_message_ids_are_refused_before_anything_is_sent(guarded: Guarded, verb: Any, message_id: object) -> None:
    with pytest.raises(AddressError) as caught:
        verb(guarded.address, message_id=message_id)
    assert str(caught.value) == f"the message ID must be in the range 0-65535, not {message_id!r}"
    assert (caught.value.kind, caught.value.phase, caught.value.hint) == ("address", None, "")
    assert not isinstance(caught.value, ConnectionError)
    assert guarded.is_untouched()


# --- The caller's mistakes -------------------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"called_ae_title": ""}, AddressError, "the AE title is empty"),
    ({"called_ae_title": "SEVENTEEN-LETTERS"}, AddressError, '"SEVENTEEN-LETTERS" has 17 characters, 16 are allowed'),
    ({"called_ae_title": None}, AddressError, "the AE title must be text, not None"),
    ({"calling_ae_title": "A\\B"}, AddressError, r"'A\\B' contains a backslash, a control character or a non-ASCII"),
    ({"calling_ae_title": "A\nB"}, AddressError, r"'A\nB' contains a backslash, a control character or a non-ASCII"),
    ({"calling_ae_title": "ÄÖ"}, AddressError, "'ÄÖ' contains a backslash, a control character or a non-ASCII"),
    ({"calling_ae_title": b"ME"}, AddressError, "the AE title must be text, not b'ME'"),
    ({"timeout": 0}, ValueError, "timeout must be more than 0 and at most 86400 seconds, not 0"),
    ({"timeout": -1}, ValueError, "timeout must be more than 0 and at most 86400 seconds, not -1"),
    ({"timeout": float("nan")}, ValueError, "timeout must be more than 0 and at most 86400 seconds, not nan"),
    ({"timeout": float("inf")}, ValueError, "timeout must be more than 0 and at most 86400 seconds, not inf"),
    ({"timeout": 1e10}, ValueError, "timeout must be more than 0 and at most 86400 seconds, not 10000000000.0"),
    ({"timeout": "5"}, TypeError, "timeout must be a number of seconds, not '5'"),
    ({"timeout": None}, TypeError, "timeout must be a number of seconds, not None"),
    ({"max_pdu": -1}, ValueError, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not -1"),
    ({"max_pdu": 15}, ValueError, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not 15"),
    ({"max_pdu": 1 << 32}, ValueError, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not 4294967296"),
    ({"max_pdu": "16384"}, TypeError, "max_pdu must be a number of bytes, not '16384'"),
    ({"max_pdu": 16384.0}, TypeError, "max_pdu must be a number of bytes, not 16384.0"),
    ({"transfer_syntaxes": ()}, ValueError, "transfer_syntaxes must be 1 to 100 names, not ()"),
    ({"transfer_syntaxes": ["implicit"] * 101}, ValueError, "transfer_syntaxes must be 1 to 100 names"),
    ({"transfer_syntaxes": ("jpeg",)}, ValueError, "a transfer syntax is one of implicit, explicit, deflated, "
     "big-endian or a UID, not 'jpeg'"),
    ({"transfer_syntaxes": ("1.2.x",)}, ValueError, "or a UID, not '1.2.x'"),
    ({"transfer_syntaxes": [1]}, ValueError, "or a UID, not 1"),
    ({"transfer_syntaxes": "implicit"}, TypeError, "transfer_syntaxes must be a sequence of names, not 'implicit'"),
    ({"transfer_syntaxes": None}, TypeError, ""),
    ({"source": "192.0.2.1"}, ValueError, "source must be an IP address of this host, not '192.0.2.1'"),
    ({"source": "localhost"}, ValueError, "source must be an IP address of this host, not 'localhost'"),
    ({"source": ""}, ValueError, "source must be an IP address of this host, not ''"),
    ({"source": "127.0.0.1", "family": socket.AF_INET6}, ValueError, "source must be an IP address of this host"),
    ({"family": "inet6"}, TypeError, "family must be socket.AF_INET or socket.AF_INET6, not 'inet6'"),
    ({"tls": True}, TypeError, "tls must be an ssl.SSLContext, not True"),
    ({"identity": "me:secret"}, TypeError, "identity must be an Identity"),
    *(({name: 1}, TypeError, f"unknown option '{name}'") for name in ("timeouts", "port", "calling", "label")),
]  # fmt: skip


@every_verb
@pytest.mark.parametrize(("options", "error", "why"), MISTAKES, ids=[str(options) for options, *_ in MISTAKES])
def test_mistakes_are_raised_before_anything_is_sent(
    guarded: Guarded, verb: Any, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    mine = Counter()
    with pytest.raises(error) as caught:
        verb(guarded.address, message_id=mine, **options)
    assert why in str(caught.value)
    assert "_Request" not in str(caught.value)
    assert mine.increment() == 1, "a refused call uses no message ID"
    assert guarded.is_untouched()


@every_verb
@pytest.mark.parametrize(
    "address",
    ["pacs:0", "pacs:", "", "x://pacs", None, 104, b"127.0.0.1:104", Address(None, "127.0.0.1", 70000),
     Address("A\\B", "127.0.0.1", 104)],
    ids=repr,
)  # fmt: skip
def test_what_is_no_address_is_refused(verb: Any, address: object) -> None:
    with pytest.raises(AddressError, match="expected"):
        verb(address, timeout=0.5)


def test_the_address_has_no_keyword() -> None:
    for verb in (send, probe, probe_many):
        with pytest.raises(TypeError):
            verb(address="127.0.0.1:1")


# --- Results ---------------------------------------------------------------------------------------------------------


def test_the_result_of_a_success() -> None:
    start = datetime.now(timezone.utc)
    with RawPeer() as peer:
        port = peer.port
        begun = time.perf_counter()
        result = echo.probe(f"STORE@127.0.0.1:{port}", calling_ae_title="ME", message_id=9)
        elapsed = time.perf_counter() - begun
    assert result.address == Address("STORE", "127.0.0.1", port)
    assert (result.called_ae_title, result.calling_ae_title, result.message_id) == ("STORE", "ME", 9)
    assert (result.ok, bool(result), result.status, result.status_text) == (True, True, 0, "Success")
    assert (result.error, result.kind, result.tls, result.notes, result.label) == (None, "ok", None, (), None)
    assert result.remote == f"127.0.0.1:{port}"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", result.local or "")
    assert result.local != result.remote
    assert result.peer == echo.Peer(
        rawpeer.IMPLEMENTATION_CLASS_UID, rawpeer.VERSION_NAME, 16384, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN
    )
    assert start <= result.started_at <= datetime.now(timezone.utc)
    assert result.started_at.utcoffset() == timedelta(0)
    assert list(result.timings) == [each for each in Phase if each != Phase.tls]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in result.timings.values())
    assert result.total == pytest.approx(sum(result.timings.values()))
    assert 0 < result.total <= elapsed


def test_the_result_of_a_status() -> None:
    with RawPeer(script(echo=rawpeer.echo_rsp(1, 0x0122))) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.ok, bool(result), result.status) == (False, False, 0x0122)
    assert (result.error, result.kind, result.status_text) == (None, "status", "SOP class not supported")
    assert (result.phase, bool(result.hint)) == (Phase.echo, True)
    assert list(result.timings) == [each for each in Phase if each != Phase.tls]
    shown = result.to_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert (shown["error"]["kind"], shown["error"]["status"]) == ("status", 0x0122)


FAILURES: list[tuple[type[EchoError], str, Script]] = [
    (echo.Rejected, "rejected", script(accept=rawpeer.associate_rj(2, 3, 1))),
    (echo.NotSupported, "not-supported", script(accept=rawpeer.associate_ac([(1, 3, None)]))),
    (echo.Aborted, "aborted", script(accept=rawpeer.abort(2, 6))),
    (echo.ConnectionLost, "lost", script(accept=Close())),
    (echo.ProtocolError, "protocol", script(accept=b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    (echo.TimedOut, "timeout", script(accept=None)),
]


@pytest.fixture(scope="module")
def failed() -> list[echo.EchoResult]:
    """A failure of each kind that needs no TLS."""
    results = []
    for _, _, steps in FAILURES:
        with RawPeer(steps) as peer:
            results.append(echo.probe(peer.address, timeout=0.3))
    with closed_port() as nobody:
        results.append(echo.probe(nobody.address))
    return [*results, echo.probe("no-such-host.invalid")]


def test_results_of_failures(failed: list[echo.EchoResult]) -> None:
    for result in failed:
        assert (result.ok, bool(result), result.status, result.status_text, result.peer) == (
            False, False, None, None, None,
        )  # fmt: skip
        assert result.error is not None
        assert (result.kind, result.phase, result.hint) == (result.error.kind, result.error.phase, result.error.hint)
        assert list(result.timings)[-1] == result.phase
        error = json.loads(json.dumps(result.to_dict()))["error"]
        assert {"kind", "phase", "message", "hint", "detail", *result.error.facts} == set(error)
    *associating, refused, unknown = failed
    assert [type(result.error) for result in associating] == [error for error, *_ in FAILURES]
    assert [result.kind for result in associating] == [kind for _, kind, _ in FAILURES]
    assert all(result.local and result.remote for result in associating)
    assert (refused.local, refused.port) == (None, refused.address.port)
    assert refused.remote == f"127.0.0.1:{refused.port}"
    assert (unknown.local, unknown.remote, unknown.port, unknown.phase) == (None, None, 104, Phase.resolve)


@pytest.mark.parametrize(("error", "kind", "steps"), [pytest.param(*each, id=each[1]) for each in FAILURES])
def test_send_raises_what_probe_returns(error: type[EchoError], kind: str, steps: Script) -> None:
    with RawPeer(steps) as peer:
        result = echo.probe(peer.address, timeout=0.3)
        with pytest.raises(error) as caught:
            echo.send(peer.address, timeout=0.3)
    assert type(result.error) is type(caught.value)
    assert vars(result.error) == vars(caught.value)
    assert str(result.error) == str(caught.value)


def test_phases_in_their_order() -> None:
    names = ["resolve", "connect", "tls", "associate", "echo", "release"]
    assert [str(phase) for phase in Phase] == [f"{phase}" for phase in Phase] == names


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
}


def test_a_result_cannot_be_changed(peer: RawPeer) -> None:
    result = echo.probe(peer.address)
    for name in result._fields:
        with pytest.raises(AttributeError):
            setattr(result, name, None)
    assert result.peer is not None
    with pytest.raises(AttributeError):
        result.peer.max_pdu = 0  # type: ignore[misc]  # what is wrong is tried
    for name in ("ok", "status_text", "kind", "total", "target"):
        with pytest.raises(AttributeError):
            setattr(result, name, None)
    for same in (result, *(make(result) for make in COPIES.values())):
        with pytest.raises(TypeError):
            same.timings[Phase.echo] = 0.0


@pytest.mark.parametrize("how", COPIES)
def test_results_and_errors_can_be_copied_and_pickled(peer: RawPeer, failed: list[echo.EchoResult], how: str) -> None:
    for result in (echo.probe(peer.address), *failed):
        twin = COPIES[how](result)
        assert twin is not result
        assert twin._replace(error=None) == result._replace(error=None)
        assert (list(twin.timings.items()), twin.to_dict()) == (list(result.timings.items()), result.to_dict())
        assert len({result, result, twin}) <= 2
        if error := result.error:
            assert (type(twin.error), repr(twin.error), twin.error.args) == (type(error), repr(error), error.args)
            assert vars(twin.error) == {**vars(error), "_case": vars(twin.error)["_case"]}
            assert {name: getattr(twin.error, name) for name in error.facts} == error.facts


def test_a_kept_failure_is_small() -> None:
    """Facts, no frames and no buffers (issue: 3,000 of a peer that sends 100 kB of junk took 1.3 GB)."""
    with RawPeer(script(accept=rawpeer.pdu(4, b"junk" * 25_000))) as peer:
        echo.probe(peer.address)
        tracemalloc.start()
        try:
            kept = [echo.probe(peer.address) for _ in range(20)]
            gc.collect()
            size = tracemalloc.get_traced_memory()[0]
            del kept[1:]
            gc.collect()
            size -= tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert kept[0].error is not None
    assert (kept[0].kind, kept[0].error.__traceback__, kept[0].error.__context__) == ("protocol", None, None)
    assert size < 20 * 8000


# --- probe_many ------------------------------------------------------------------------------------------------------


def workers() -> list[threading.Thread]:
    """The threads of the module that are alive; those of a name look-up that hangs are left behind on purpose."""
    return [thread for thread in threading.enumerate() if thread.name == "dicom-echo"]


def test_a_result_for_each_address(canned: Canned) -> None:
    mine = Counter()
    with closed_port() as closed:
        asked: list[str | Address] = [*addresses(canned.live), closed.address, echo.parse_address("localhost:1")]
        results = list(echo.probe_many(asked, message_id=mine, timeout=10, jobs=5))
    assert sorted(str(result.address) for result in results) == sorted(map(str, asked))
    assert sorted(result.message_id for result in results) == list(range(1, len(asked) + 1))
    assert sorted(result.kind for result in results) == ["ok"] * 64 + ["unreachable"] * 2
    assert list(echo.probe_many([])) == []


@pytest.mark.parametrize("kind", [list, iter])
def test_all_addresses_are_checked_before_the_first_is_asked(guarded: Guarded, kind: Any) -> None:
    with pytest.raises(AddressError, match="bad::x"):
        echo.probe_many(kind([guarded.address, "bad::x"]))
    assert guarded.is_untouched()
    assert workers() == []


@pytest.mark.parametrize(
    ("addresses", "options", "error", "why"),
    [
        ("pacs", {}, TypeError, "addresses must be an iterable of addresses, not 'pacs'"),
        (echo.parse_address("pacs"), {}, TypeError, "addresses must be an iterable of addresses, not Address"),
        (["pacs"], {"jobs": 0}, ValueError, "jobs must be a whole number of at least 1, not 0"),
        (["pacs"], {"jobs": 1.5}, ValueError, "jobs must be a whole number of at least 1, not 1.5"),
    ],
)
def test_mistakes_are_told_by_the_call(addresses: Any, options: Any, error: type[Exception], why: str) -> None:
    """Not only when the first result is asked for."""
    with pytest.raises(error, match=re.escape(why)):
        echo.probe_many(addresses, **options)


def test_an_exception_of_the_caller_s_iterable_is_raised(guarded: Guarded) -> None:
    def failing() -> Iterator[str]:
        yield guarded.address
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        echo.probe_many(failing())
    assert guarded.is_untouched()


def test_nothing_is_sent_before_the_first_result_is_wanted(guarded: Guarded) -> None:
    results = echo.probe_many([guarded.address])
    assert guarded.is_untouched()
    assert next(results).ok
    guarded.is_untouched()


@pytest.mark.parametrize("kind", ["silent", "no SYN-ACK", "TLS"])
def test_closing_early_ends_all_at_once_and_leaves_nothing(canned: Canned, tls_scp: Peer, kind: str) -> None:
    context = ssl.create_default_context() if kind == "TLS" else None
    if context:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    good = tls_scp.address if context else canned.live[0].address
    echo.probe(good, tls=context)
    with contextlib.ExitStack() as stack:
        asked = addresses(canned.silent)
        if kind == "no SYN-ACK":
            asked = [stack.enter_context(full_listener()).address for _ in range(4)]
        with nothing_left_behind(patience=20 if context else 0):
            results = echo.probe_many([*asked, good], timeout=60, tls=context)
            assert next(results).ok
            assert len(workers()) == 1
            begun = time.monotonic()
            results.close()
            assert workers() == []
            assert time.monotonic() - begun < 20
            assert list(results) == []


def test_a_loop_that_is_left_early_leaves_nothing(canned: Canned) -> None:
    with nothing_left_behind(patience=20):
        for result in echo.probe_many([canned.live[0].address, *addresses(canned.silent)], timeout=60):
            assert result.ok
            break


def test_the_pauses_of_who_reads_are_not_the_peers(canned: Canned) -> None:
    """The loop has a thread of its own: results wait for a slow reader, echoes do not."""
    totals = []
    for result in echo.probe_many(addresses(canned.live[:8]), jobs=1):
        time.sleep(0.1)
        totals.append(result.total)
    assert max(totals) < 0.1 * 4
    assert sorted(totals)[4] < 0.09


def test_several_threads_may_use_it_at_once(canned: Canned) -> None:
    mine, results = Counter(), list[echo.EchoResult]()

    def ask() -> None:
        results.extend(echo.probe_many(addresses(canned.live[:16]), message_id=mine, jobs=4))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.ok for result in results] == [True] * 96
    assert sorted(result.message_id for result in results) == list(range(1, 97))


# --- What it costs ---------------------------------------------------------------------------------------------------


def test_many_echoes_leave_nothing_behind(canned: Canned) -> None:
    echo.send(canned.live[0].address)  # what is loaded once is not counted
    with closed_port() as closed, nothing_left_behind():
        for address in addresses(canned.live) * 2:
            assert echo.send(address) == 0
        assert all(echo.probe_many(addresses(canned.live) * 4))
        assert {echo.probe(closed.address).kind for _ in range(100)} == {"unreachable"}
        kinds = [result.kind for result in echo.probe_many(addresses(canned.silent) * 8, timeout=0.02)]
        assert kinds == ["timeout"] * 24 * 8


@pytest.mark.parametrize(
    "steps", [GOOD_SCRIPT, *(steps for *_, steps in FAILURES)], ids=["ok", *(k for _, k, _ in FAILURES)]
)
def test_no_outcome_leaves_anything_behind(peer: RawPeer, steps: Script) -> None:
    echo.send(peer.address)
    with nothing_left_behind(), RawPeer(steps) as other:
        for _ in range(3):
            echo.probe(other.address, timeout=0.1)


def test_memory_does_not_grow_with_the_targets_that_are_done(canned: Canned) -> None:
    asked = list(itertools.islice(itertools.cycle(addresses(canned.live)), 1300))
    with contextlib.closing(echo.probe_many(asked, jobs=8)) as results:
        list(itertools.islice(results, 200))
        time.sleep(0.1)
        tracemalloc.start()
        try:
            list(itertools.islice(results, 1))
            gc.collect()  # what hangs together in a circle is not held, only not yet gone
            early = tracemalloc.get_traced_memory()[0]
            list(itertools.islice(results, 1000))
            gc.collect()
            late = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert late - early < 1_000_000


def test_many_threads_at_once(peer: RawPeer) -> None:
    mine = Counter()
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda _: echo.probe(peer.address, message_id=mine), range(72)))
    assert [str(result.error) for result in results if not result.ok] == []
    assert sorted(result.message_id for result in results) == list(range(1, 73))


def test_no_echo_touches_the_filters_of_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: what one thread puts back may be what another has set."""
    touched: list[object] = []
    padded = script(accept=rawpeer.associate_ac([(1, 0, "1.2.840.10008.1.2 ")]))
    with RawPeer(padded) as odd:
        echo.send(odd.address)  # what is imported on first use may do so
        with monkeypatch.context() as patched:
            for owner, name in ((warnings.catch_warnings, "__init__"), (warnings, "simplefilter")):
                patched.setattr(owner, name, lambda *given, **_: touched.append(given))
            result = echo.probe(odd.address, message_id=1, max_pdu=4000)
    assert touched == []
    assert (result.ok, len(result.notes)) == (True, 1)


FIRST_ECHOES = """
import sys, concurrent.futures, dicom_echo
assert "pynetdicom" not in sys.modules
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(sorted(set(pool.map(lambda _: dicom_echo.send(sys.argv[1]), range(16)))))
"""

# No thread can be started: there is no memory for a stack of this size.
WITHOUT_THREADS = """
import sys, threading
threading.stack_size(1 << 46)
try:
    threading.Thread(target=print).start()
except RuntimeError:
    import dicom_echo
    live, silent = sys.argv[1:]
    print(dicom_echo.send(live), dicom_echo.probe(live.replace("127.0.0.1", "localhost")).kind)
    print(sorted(each.kind for each in dicom_echo.probe_many([live, silent, "no-such-host.invalid"], timeout=0.5)))
    results = dicom_echo.probe_many([live, silent], timeout=60)
    print(next(results).kind)
    results.close()
    print(dicom_echo.main(["--quiet", live, live.replace("127.0.0.1", "localhost")]))
else:
    print("SKIP")
"""

# Every file descriptor that the system allows is in use.
WITHOUT_DESCRIPTORS = """
import os, resource, sys
import dicom_echo
live, _ = sys.argv[1:]
dicom_echo.main(["--format", "nagios", live])  # what is imported on first use needs descriptors, too
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    while True:
        os.dup(0)
except OSError:
    pass
for address in (live, live.replace("127.0.0.1", "localhost")):
    error = dicom_echo.probe(address).error
    print(type(error).__name__, error.errno, error.hint.partition(",")[0])
print([each.kind for each in dicom_echo.probe_many([live, live.replace("127.0.0.1", "127.0.0.2")])])
print(int(dicom_echo.main(["--format", "nagios", live])))
"""


def run_code(code: str, *arguments: str) -> str:
    done = run_process([sys.executable, "-c", code, *arguments])
    assert (done.err, done.code) == ("", 0)
    return done.out


def test_the_first_echoes_of_a_process_from_many_threads(peer: RawPeer) -> None:
    assert run_code(FIRST_ECHOES, peer.address) == "[0]\n"


def test_where_no_thread_can_be_started_the_calling_one_does_it(canned: Canned) -> None:
    said = run_code(WITHOUT_THREADS, canned.live[0].address, canned.silent[0].address)
    if said == "SKIP\n":
        pytest.skip("this system has memory for any stack")
    assert said.splitlines() == ["0 ok", "['ok', 'timeout', 'unreachable']", "ok", "0"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_no_file_descriptors_are_this_host_s_trouble(canned: Canned) -> None:
    _, *said, line, code = run_code(WITHOUT_DESCRIPTORS, canned.live[0].address, canned.silent[0].address).splitlines()
    assert said == [
        *["Unreachable 24 the problem is on this host"] * 2, "['unreachable', 'unreachable']",
    ]  # fmt: skip
    assert line.startswith("DICOM ECHO UNKNOWN - ")
    assert "too many open files" in line
    assert code == "3"


# --- Importing and logging -------------------------------------------------------------------------------------------

WITNESS = """
import json, logging, sys, threading
import dicom_echo
code = None
if len(sys.argv) > 1:
    try:
        code = dicom_echo.main(sys.argv[1:])
    except SystemExit as left:
        code = left.code
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(2)
own = logging.getLogger("dicom_echo")
heavy = [name for name in ("pynetdicom", "pydicom", "numpy") if name in sys.modules]
handlers = len(logging.getLogger().handlers) + len(own.handlers)
print(json.dumps([code, heavy, threading.active_count(), handlers, own.level]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], None),
        (["--help"], 0),
        (["--version"], 0),
        (["--quiet"], 2),
        (["pacs:0"], 2),
        (["--no-such-option", "pacs"], 2),
        (["--source", "192.0.2.1", "pacs"], 2),
        (["no-such-host.invalid"], 3),
        (["127.0.0.1:1"], 3),
        (["-v", "127.0.0.1:1"], 3),
        (["--format", "json", "127.0.0.1:1"], 3),
    ],
    ids=str,
)
def test_who_reaches_no_peer_does_not_pay_for_the_codec(arguments: list[str], code: int | None) -> None:
    done = run_process([sys.executable, "-c", WITNESS, *arguments], environment(NO_COLOR="1"))
    assert json.loads(done.err.splitlines()[-1]) == [code, [], 1, 0, logging.NOTSET]


def test_every_pdu_is_logged_for_debugging_and_nothing_otherwise(
    peer: RawPeer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dicom_echo"), closed_port() as nobody:
        echo.send(peer.address)
        echo.probe(nobody.address)
    assert [record for record in caplog.records if record.name == "dicom_echo"] == []
    with caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        echo.send(peer.address, message_id=1)
    mine = [record for record in caplog.records if record.name == "dicom_echo"]
    heads = [re.match(r"\S+ \S+ (sent|received) ([A-Z-]+),", record.getMessage()) for record in mine]
    assert [head and head.groups() for head in heads] == [
        ("sent", "A-ASSOCIATE-RQ"), ("received", "A-ASSOCIATE-AC"), ("sent", "P-DATA-TF"), ("received", "P-DATA-TF"),
        ("sent", "A-RELEASE-RQ"), ("received", "A-RELEASE-RP"),
    ]  # fmt: skip
    assert {record.levelno for record in mine} == {logging.DEBUG}
    assert peer.conversation(1).types == [A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]


def test_logging_is_not_timed(peer: RawPeer) -> None:
    class Slow(logging.Handler):
        count = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.count += 1
            time.sleep(0.3)

    logger, slow = logging.getLogger("dicom_echo"), Slow()
    logger.addHandler(slow)
    logger.setLevel(logging.DEBUG)
    try:
        result = echo.probe(peer.address)
    finally:
        logger.removeHandler(slow)
        logger.setLevel(logging.NOTSET)
    assert slow.count == 6
    assert sum(result.timings.values()) < 0.9  # of 1.8 and more


def test_a_silent_peer_takes_its_time_and_no_more() -> None:
    with silent_listener() as silent, RawPeer() as good:
        begun = time.monotonic()
        first, second = echo.probe_many([silent.address, good.address], timeout=0.7)
    assert (first.kind, second.kind) == ("ok", "timeout")
    assert 0.6 < time.monotonic() - begun < 20
