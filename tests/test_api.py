"""The Python interface: what it takes, what it refuses before anything is sent, what it gives back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
import pickle
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from command import environment, run_process
from leaks import nothing_left_behind
from rawpeer import (
    A_ASSOCIATE_RQ,
    A_RELEASE_RQ,
    GOOD_SCRIPT,
    IMPLEMENTATION_CLASS_UID,
    IMPLICIT_VR_LITTLE_ENDIAN,
    P_DATA_TF,
    VERSION_NAME,
    Close,
    Endpoint,
    Expect,
    Pause,
    RawPeer,
    Script,
    Send,
    Serve,
    abort,
    accept_proposal,
    associate_ac,
    associate_rj,
    closed_port,
    echo_rsp,
    family_of,
    full_listener,
    script,
)

import dicom_echo as echo
from dicom_echo import Address, AddressError, Counter, EchoError, Phase

# For calls that a type checker would not let pass.
send: Any = echo.send
probe: Any = echo.probe

HANGS = 3.0  # more than any limit below, and than any hurry of the machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops SYNs when a backlog is full")


@pytest.fixture
def peer() -> Iterator[RawPeer]:
    """A good peer."""
    with RawPeer() as peer:
        yield peer


class Guarded(RawPeer):
    """A good peer that knows whether anybody has connected since it was last asked.

    Connections are accepted in their order: nobody came before an echo that is the next to be received.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known = 0

    def is_untouched(self) -> bool:
        echo.send(self.address)
        before, self._known = self._known, len(self.received)
        return self._known == before + 1


@pytest.fixture(scope="module")
def guarded_by_all() -> Iterator[Guarded]:
    """One for all tests: starting and ending a peer takes time."""
    peer = Guarded()
    with peer:
        yield peer


@pytest.fixture
def guarded(guarded_by_all: Guarded) -> Guarded:
    """A peer for those who must not reach it."""
    guarded_by_all.is_untouched()  # whatever was before
    return guarded_by_all


# --- The shape of the module -----------------------------------------------------------------------------------------

CONTRACT_NAMES = {
    "DEFAULT_CALLED_AE_TITLE", "DEFAULT_CALLING_AE_TITLE", "send", "probe", "parse_address", "Address", "Counter",
    "counter", "EchoResult", "Phase", "EchoError", "AddressError", "Unreachable", "ConnectionLost", "TLSFailed",
    "TimedOut", "Rejected", "NotSupported", "Aborted", "ProtocolError",
}  # fmt: skip


def test_all_holds_the_contract() -> None:
    assert set(echo.__all__) >= CONTRACT_NAMES
    assert len(set(echo.__all__)) == len(echo.__all__)
    assert all(hasattr(echo, name) for name in echo.__all__)


def test_nothing_public_is_left_out_of_all() -> None:
    own = {name for name, value in vars(echo).items() if getattr(value, "__module__", None) == "dicom_echo"}
    assert {name for name in own if not name.startswith("_")} - set(echo.__all__) <= {"main"}


def test_defaults() -> None:
    assert (echo.DEFAULT_CALLED_AE_TITLE, echo.DEFAULT_CALLING_AE_TITLE) == ("ANY-SCP", "ECHOSCU")


def test_version() -> None:
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


@pytest.mark.parametrize(("name", "value"), [pytest.param(*each, id=each[0]) for each in public_objects()])
def test_every_public_object_has_a_docstring(name: str, value: object) -> None:
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}("), "dataclasses and named tuples make one up"


@pytest.mark.parametrize("verb", [echo.send, echo.probe])
def test_signature(verb: Callable[..., object]) -> None:
    first, *keywords = list(inspect.signature(verb).parameters.values())[:4]
    assert (first.name, first.kind) == ("address", first.POSITIONAL_ONLY)
    assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in keywords)
    assert {each.name: each.default for each in keywords} == {
        "called_ae_title": "ANY-SCP",
        "calling_ae_title": "ECHOSCU",
        "message_id": echo.counter,
    }
    assert [each.name for each in keywords] == ["called_ae_title", "calling_ae_title", "message_id"]


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


def test_positional_use_as_in_the_rust_package(peer: RawPeer) -> None:
    assert echo.send(peer.address, "STORE", "ME", 7) == 0
    conversation = peer.conversation()
    assert (conversation.request.called, conversation.request.calling) == ("STORE", "ME")
    assert conversation.message_ids == [7]


def test_keyword_use(peer: RawPeer) -> None:
    assert echo.send(peer.address, message_id=7, calling_ae_title="ME", called_ae_title="STORE") == 0
    conversation = peer.conversation()
    assert (conversation.request.called, conversation.request.calling) == ("STORE", "ME")
    assert conversation.message_ids == [7]


@pytest.mark.parametrize("verb", [send, probe])
def test_the_address_has_no_keyword(verb: Any) -> None:
    with pytest.raises(TypeError):
        verb(address="127.0.0.1:1")


def test_an_address_instead_of_a_text(peer: RawPeer) -> None:
    address = Address("STORE", "127.0.0.1", peer.port)
    result = echo.probe(address)
    assert result.ok
    assert result.address == address
    assert peer.conversation().request.called == "STORE"


def test_send_returns_the_status_that_is_no_success() -> None:
    with RawPeer(script(echo=echo_rsp(1, 0x0122))) as peer:
        assert echo.send(peer.address, message_id=1) == 0x0122


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


def test_the_calling_title_is_padded(peer: RawPeer) -> None:
    result = echo.probe(peer.address, calling_ae_title=" ME ")
    assert result.calling_ae_title == "ME"
    assert peer.conversation().request.calling_field == b"ME              "


def test_options_reach_the_wire(peer: RawPeer) -> None:
    assert echo.probe(peer.address, max_pdu=4096, transfer_syntaxes=["big-endian", "1.2.840.10008.1.2.1"]).ok
    request = peer.conversation().request
    assert request.max_length == 4096
    assert request.contexts[0].transfer_syntaxes == ("1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1")


# --- Counter and message ids -----------------------------------------------------------------------------------------


def test_the_shared_counter_counts_up(peer: RawPeer) -> None:
    before = echo.probe(peer.address).message_id
    after = [echo.probe(peer.address).message_id for _ in range(3)]
    assert after == [(before + step) % 0x10000 for step in (1, 2, 3)]
    assert [peer.conversation(number).message_ids[0] for number in range(4)] == [before, *after]


def test_a_counter_of_ones_own(peer: RawPeer) -> None:
    mine = Counter()
    assert [echo.probe(peer.address, message_id=mine).message_id for _ in range(3)] == [1, 2, 3]
    assert mine.increment() == 4


def test_the_counter_wraps_to_one() -> None:
    mine = Counter()
    ids = [mine.increment() for _ in range(65537)]
    assert ids == [*range(1, 65536), 1, 2]


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


@pytest.mark.parametrize("verb", [send, probe])
@pytest.mark.parametrize("message_id", [-1, 65536, "1", 1.5, 1.0, None])
def test_other_message_ids_are_refused_before_anything_is_sent(guarded: Guarded, verb: Any, message_id: object) -> None:
    with pytest.raises(AddressError) as caught:
        verb(guarded.address, message_id=message_id)
    assert str(caught.value) == f"the message id must be in the range 0-65535, not {message_id!r}"
    assert caught.value.phase is None
    assert guarded.is_untouched()


def test_a_bool_is_no_message_id(guarded: Guarded) -> None:
    with pytest.raises(AddressError):
        probe(guarded.address, message_id=True)
    assert guarded.is_untouched()


# --- The caller's mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [send, probe])
@pytest.mark.parametrize(
    ("address", "titles"),
    [
        ("pacs:0", {}),
        ("pacs:", {}),
        ("", {}),
        (Address(None, "127.0.0.1", 70000), {}),
        (Address("A\\B", "127.0.0.1", 104), {}),
        ("127.0.0.1:1", {"called_ae_title": ""}),
        ("127.0.0.1:1", {"called_ae_title": "SEVENTEEN-LETTERS"}),
        ("127.0.0.1:1", {"calling_ae_title": "A\\B"}),
        ("127.0.0.1:1", {"calling_ae_title": "A\nB"}),
        ("127.0.0.1:1", {"calling_ae_title": "ÄÖ"}),
    ],
)
def test_wrong_addresses_and_titles_raise(verb: Any, address: str | Address, titles: dict[str, str]) -> None:
    with pytest.raises(AddressError) as caught:
        verb(address, **titles)
    assert caught.value.kind == "address"


@pytest.mark.parametrize("verb", [send, probe])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": 0}, "timeout must be more than 0 and at most 86400 seconds, not 0"),
        ({"timeout": -1}, "timeout must be more than 0 and at most 86400 seconds, not -1"),
        ({"timeout": float("nan")}, "timeout must be more than 0 and at most 86400 seconds, not nan"),
        ({"timeout": float("inf")}, "timeout must be more than 0 and at most 86400 seconds, not inf"),
        ({"max_pdu": -1}, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not -1"),
        ({"max_pdu": 15}, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not 15"),
        ({"max_pdu": 1 << 32}, "max_pdu must be 0 (unlimited) or in the range 16-4294967295, not 4294967296"),
        ({"transfer_syntaxes": ()}, "transfer_syntaxes must name one at least"),
        ({"transfer_syntaxes": ["implicit"] * 101}, "and 100 at most"),
        ({"transfer_syntaxes": ("jpeg",)}, "or a UID, not 'jpeg'"),
        ({"transfer_syntaxes": ("1.2.x",)}, "or a UID, not '1.2.x'"),
        ({"transfer_syntaxes": "implicit"}, "a transfer syntax is one of"),
        ({"source": "192.0.2.1"}, "source must be an IP address of this host, not '192.0.2.1'"),
        ({"source": "localhost"}, "source must be an IP address of this host, not 'localhost'"),
        ({"source": ""}, "source must be an IP address of this host, not ''"),
        ({"source": "127.0.0.1", "family": socket.AF_INET6}, "source must be an IP address of this host"),
    ],
)
def test_bad_options_are_refused_before_anything_is_sent(
    guarded: Guarded, verb: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        verb(guarded.address, **options)
    assert guarded.is_untouched()


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": "5"},
        {"timeout": None},
        {"max_pdu": "16384"},
        {"max_pdu": 16384.0},
        {"tls": True},
        {"transfer_syntaxes": None},
        {"transfer_syntaxes": [1]},
        {"family": "inet6"},
        {"called_ae_title": None},
        {"calling_ae_title": b"ME"},
    ],
    ids=str,
)
def test_options_of_a_wrong_type_are_refused_before_anything_is_sent(guarded: Guarded, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        probe(guarded.address, **options)
    assert guarded.is_untouched()


@pytest.mark.parametrize("address", [None, 104, b"127.0.0.1:104", ("127.0.0.1", 104)], ids=str)
def test_what_is_no_address_is_refused(address: object) -> None:
    with pytest.raises((TypeError, AddressError)):
        probe(address, timeout=0.5)


@pytest.mark.parametrize("verb", [send, probe])
@pytest.mark.parametrize("name", ["timeouts", "port", "calling", "called", "parsed"])
def test_an_unknown_keyword_is_a_type_error_in_public_words(guarded: Guarded, verb: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name) as caught:
        verb(guarded.address, **{name: 1})
    assert "_Request" not in str(caught.value)
    assert guarded.is_untouched()


def test_a_refused_call_uses_no_message_id(peer: RawPeer) -> None:
    mine = Counter()
    with pytest.raises(ValueError, match="timeout"):
        probe(peer.address, message_id=mine, timeout=0)
    assert mine.increment() == 1


@pytest.mark.parametrize("timeout", [1e6, 1e10, 1e300])
def test_a_very_long_timeout_is_taken_or_refused(peer: RawPeer, timeout: float) -> None:
    try:
        assert echo.probe(peer.address, timeout=timeout).ok
    except ValueError as error:
        assert "timeout" in str(error)  # noqa: PT017  # either is right


# --- Results ---------------------------------------------------------------------------------------------------------


def test_the_result_of_a_success() -> None:
    start = datetime.now(timezone.utc)
    with RawPeer() as peer:
        port = peer.port
        result = echo.probe(f"STORE@127.0.0.1:{port}", calling_ae_title="ME", message_id=9)
    assert result.address == Address("STORE", "127.0.0.1", port)
    assert (result.called_ae_title, result.calling_ae_title, result.message_id) == ("STORE", "ME", 9)
    assert (result.ok, result.status, result.status_text, result.error) == (True, 0, "Success", None)
    assert result.kind == "ok"
    assert result.remote == f"127.0.0.1:{port}"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", result.local or "")
    assert result.local != result.remote
    assert result.peer is not None
    assert result.peer.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert result.peer.implementation_version_name == VERSION_NAME
    assert result.peer.max_pdu == 16384
    assert result.peer.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    assert result.tls is None
    assert result.notes == ()
    assert start <= result.started_at <= datetime.now(timezone.utc)
    assert result.started_at.utcoffset() == timedelta(0)


def test_the_result_of_a_status() -> None:
    with RawPeer(script(echo=echo_rsp(1, 0x0122))) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.ok, result.status, result.status_text) == (False, 0x0122, "SOP class not supported")
    assert (result.error, result.kind) == (None, "status")
    assert list(result.timings) == ["resolve", "connect", "associate", "echo", "release"]


def test_the_result_of_a_refused_connection() -> None:
    with closed_port() as nobody:
        result = echo.probe(nobody.address)
    assert (result.ok, result.status, result.status_text, result.kind) == (False, None, None, "unreachable")
    assert isinstance(result.error, echo.Unreachable)
    assert (result.local, result.remote) == (None, nobody.host_port)
    assert (result.peer, result.tls, result.notes) == (None, None, ())
    assert list(result.timings) == ["resolve", "connect"]


def test_the_result_of_a_name_that_does_not_resolve() -> None:
    result = echo.probe("no-such-host.invalid")
    assert isinstance(result.error, echo.Unreachable)
    assert result.error.phase == Phase.resolve
    assert (result.local, result.remote, result.port) == (None, None, 104)
    assert list(result.timings) == ["resolve"]


def test_phases_in_their_order() -> None:
    names = ["resolve", "connect", "tls", "associate", "echo", "release"]
    assert list(Phase) == names
    assert [str(phase) for phase in Phase] == [f"{phase}" for phase in Phase] == names
    assert json.dumps(list(Phase)) == json.dumps(names)
    assert all(phase.__doc__ for phase in Phase)


def test_timings_are_those_of_the_phases_that_ran(peer: RawPeer) -> None:
    start = time.perf_counter()
    result = echo.probe(peer.address)
    elapsed = time.perf_counter() - start
    assert list(result.timings) == [Phase.resolve, Phase.connect, Phase.associate, Phase.echo, Phase.release]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in result.timings.values())
    assert result.total == pytest.approx(sum(result.timings.values()))
    assert result.total <= elapsed
    assert result.timings[Phase.echo] == result.timings["echo"]  # type: ignore[index]  # a phase equals its name


def test_a_slow_phase_shows_in_its_own_timing() -> None:
    with RawPeer(slow(accept=1, echo=0)) as peer:
        timings = echo.probe(peer.address).timings
    assert timings[Phase.associate] >= 0.9
    assert sum(seconds for phase, seconds in timings.items() if phase != Phase.associate) < 0.9


def slow(accept: float, echo: float) -> Script:
    """A peer that takes so many seconds for each answer."""
    answer = (Send(accept_proposal), Expect(P_DATA_TF), Pause(echo), Send(echo_rsp(1)), Serve())
    return (Expect(A_ASSOCIATE_RQ), Pause(accept), *answer)


@pytest.mark.parametrize(
    ("accept", "echo_", "noted"), [(4, 0, True), (0.1, 0, False), (1.2, 0.4, False), (0, 1, False)]
)
def test_a_slow_association_alone_has_a_likely_reason(accept: float, echo_: float, noted: bool) -> None:
    with RawPeer(slow(accept, echo_)) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert result.ok
    note = "only the association was slow: the peer may be looking the address of this host up in DNS"
    assert result.notes == ((note,) if noted else ())


def test_a_result_cannot_be_changed(peer: RawPeer) -> None:
    result = echo.probe(peer.address)
    for each in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, each.name, None)
    assert result.peer is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.peer.max_pdu = 0  # type: ignore[misc]  # what is wrong is tried
    for name in ("ok", "status_text", "kind", "total", "target"):
        with pytest.raises(AttributeError):
            setattr(result, name, None)
    assert isinstance(result.notes, tuple)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda what: pickle.loads(pickle.dumps(what)),
}


@pytest.mark.parametrize("how", ["itself", *COPIES])
def test_timings_are_read_only(peer: RawPeer, how: str) -> None:
    result = COPIES.get(how, lambda what: what)(echo.probe(peer.address))
    with pytest.raises(TypeError):
        result.timings[Phase.echo] = 0.0
    assert isinstance(result.timings, Mapping)


@pytest.mark.parametrize("how", COPIES)
def test_results_can_be_copied_and_pickled(peer: RawPeer, how: str) -> None:
    result = echo.probe(peer.address)
    twin = COPIES[how](result)
    assert twin is not result
    assert twin == result
    assert list(twin.timings.items()) == list(result.timings.items())
    assert (twin.ok, twin.total, twin.target, twin.kind) == (result.ok, result.total, result.target, result.kind)


# --- Failures --------------------------------------------------------------------------------------------------------

FAILURES: list[tuple[type[EchoError], str, Script]] = [
    (echo.Rejected, "rejected", script(accept=associate_rj(1, 1, 7))),
    (echo.NotSupported, "not-supported", script(accept=associate_ac([(1, 3, None)]))),
    (echo.Aborted, "aborted", script(accept=abort(2, 6))),
    (echo.ConnectionLost, "lost", script(accept=Close())),
    (echo.ProtocolError, "protocol", script(accept=b"HTTP/1.1 400 Bad Request\r\n\r\n")),
    (echo.TimedOut, "timeout", script(accept=None)),
]
failures = pytest.mark.parametrize(("error", "kind", "steps"), [pytest.param(*each, id=each[1]) for each in FAILURES])


@failures
def test_probe_returns_what_send_raises(error: type[EchoError], kind: str, steps: Script) -> None:
    with RawPeer(steps) as peer:
        result = echo.probe(peer.address, timeout=1)
        with pytest.raises(EchoError) as caught:
            echo.send(peer.address, timeout=1)
    assert type(result.error) is type(caught.value) is error
    assert result.kind == caught.value.kind == kind
    assert str(result.error) == str(caught.value)
    assert result.error.phase == caught.value.phase == Phase.associate
    assert result.error.facts == caught.value.facts
    assert result.error.hint == caught.value.hint
    assert list(result.timings) == ["resolve", "connect", "associate"]
    assert (result.ok, result.status, result.peer) == (False, None, None)
    assert None not in (result.local, result.remote)


def errors() -> Iterator[EchoError]:
    """One of each kind that needs no TLS."""
    for _, _, steps in FAILURES:
        with RawPeer(steps) as peer:
            yield probe(peer.address, timeout=1).error
    with closed_port() as nobody:
        yield probe(nobody.address).error
    yield probe("no-such-host.invalid").error
    with pytest.raises(AddressError) as caught:
        echo.parse_address("pacs:0")
    yield caught.value


@pytest.mark.parametrize("how", COPIES)
def test_errors_can_be_copied_and_pickled_with_their_facts(how: str) -> None:
    for error in errors():
        twin = COPIES[how](error)
        assert type(twin) is type(error)
        assert (str(twin), twin.args, repr(twin)) == (str(error), error.args, repr(error))
        assert (twin.message, twin.phase, twin.hint, twin.detail) == (
            error.message, error.phase, error.hint, error.detail,
        )  # fmt: skip
        assert twin.facts == error.facts
        for name, value in error.facts.items():
            assert getattr(twin, name) == getattr(error, name) == value, f"{name} of {error!r}"


@failures
def test_results_can_be_hashed_and_made_into_a_dict(error: type[EchoError], kind: str, steps: Script) -> None:
    with RawPeer(steps, GOOD_SCRIPT) as peer:
        results = [echo.probe(peer.address, timeout=1) for _ in range(2)]
    assert len({*results, *results, copy.copy(results[1])}) == 2
    made = [dataclasses.asdict(result) for result in results]
    assert [dict(each["timings"]) for each in made] == [dict(result.timings) for result in results]
    assert type(made[0]["error"]) is error
    with pytest.raises(TypeError):
        results[0].timings[Phase.echo] = 0.0  # type: ignore[index]  # what is wrong is tried


@failures
def test_results_of_failures_can_be_pickled(error: type[EchoError], kind: str, steps: Script) -> None:
    with RawPeer(steps) as peer:
        result = echo.probe(peer.address, timeout=1)
    twin = pickle.loads(pickle.dumps(result))
    assert (type(twin.error), twin.kind) == (error, kind)
    assert dataclasses.replace(twin, error=None) == dataclasses.replace(result, error=None)


def test_facts_are_attributes() -> None:
    with RawPeer(script(accept=associate_rj(2, 3, 1))) as peer, pytest.raises(echo.Rejected) as caught:
        echo.send(peer.address)
    error = caught.value
    assert (error.result, error.source, error.reason) == (2, 3, 1)
    assert error.facts == {"result": 2, "source": 3, "reason": 1}


def test_a_failure_of_an_old_look_up_does_not_leak_into_the_next(peer: RawPeer) -> None:
    with closed_port() as nobody:
        assert not echo.probe(nobody.address).ok
    assert echo.probe(peer.address).ok


@pytest.mark.parametrize(
    "odd",
    [
        {"version_name": "PADDED\0"},
        {"version_name": "BACK\\SLASH"},
        {"version_name": "TAB\tNEWLINE\n"},
        {"version_name": "SEVENTEEN-LETTERS"},
        {"version_name": ""},
        {"version_name": None},
        {"implementation_class_uid": "1.2.3\0"},
        {"implementation_class_uid": "no UID"},
        {"implementation_class_uid": "1." + "2" * 63},
        {"implementation_class_uid": ""},
        {"implementation_class_uid": None},
    ],
    ids=str,
)
def test_what_a_peer_calls_itself_decides_nothing(odd: dict[str, Any]) -> None:
    with RawPeer(script(accept=associate_ac(**odd))) as peer:
        result = echo.probe(peer.address)
    assert (result.error, result.status) == (None, 0)


# --- Names with several addresses ------------------------------------------------------------------------------------

NO_WAY = Endpoint("255.255.255.255", 104)  # no route leads to a broadcast address: nothing is sent

ResolveTo = Callable[..., str]


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> ResolveTo:
    """Makes the name `many.test` stand for these endpoints, in this order."""

    def install(*endpoints: Endpoint) -> str:
        def getaddrinfo(host: bytes, port: int, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
            assert (host, port) == (b"many.test", 104)
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(family_of(each.host), socket.SOCK_STREAM, 6, "", (each.host, each.port)) for each in endpoints]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return "many.test"

    return install


@pytest.fixture
def refusing() -> Iterator[Endpoint]:
    with closed_port() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def dropping() -> Iterator[Endpoint]:
    with full_listener() as endpoint:
        yield endpoint


def timed_probe(address: str, timeout: float) -> tuple[echo.EchoResult, float]:
    start = time.monotonic()
    result = echo.probe(address, timeout=timeout)
    return result, time.monotonic() - start


def test_refused_first_then_answered(peer: RawPeer, refusing: Endpoint, resolve_to: ResolveTo) -> None:
    result = echo.probe(resolve_to(refusing, refusing, peer.endpoint))
    assert result.ok
    assert result.remote == peer.endpoint.host_port


def test_ipv6_refused_first_then_ipv4(peer: RawPeer, ipv6: str, resolve_to: ResolveTo) -> None:
    """What `localhost` is on most hosts, with a peer that listens on 127.0.0.1 only."""
    with closed_port(ipv6) as nobody:
        result = echo.probe(resolve_to(nobody, peer.endpoint))
    assert result.ok
    assert result.remote == peer.endpoint.host_port


def test_the_first_that_answers_is_taken(peer: RawPeer, refusing: Endpoint, resolve_to: ResolveTo) -> None:
    assert echo.probe(resolve_to(peer.endpoint, refusing)).remote == peer.endpoint.host_port


@linux
def test_a_silent_address_leaves_time_for_the_next(peer: RawPeer, dropping: Endpoint, resolve_to: ResolveTo) -> None:
    result, elapsed = timed_probe(resolve_to(dropping, peer.endpoint), timeout=2)
    assert result.ok
    assert result.remote == peer.endpoint.host_port
    assert elapsed < 2


@linux
def test_all_silent_within_the_deadline(dropping: Endpoint, resolve_to: ResolveTo) -> None:
    result, elapsed = timed_probe(resolve_to(dropping, dropping, dropping), timeout=0.6)
    assert isinstance(result.error, echo.TimedOut)
    assert result.error.phase == Phase.connect
    assert str(result.error) == "no answer within 0.6 s"
    assert result.error.timeout == 0.6
    assert result.error.detail == "; ".join([f"{dropping.host_port}: timed out"] * 3)
    assert 0.5 < elapsed < HANGS


def test_all_refused(refusing: Endpoint, resolve_to: ResolveTo) -> None:
    with closed_port() as other:
        result = echo.probe(resolve_to(refusing, other))
    assert isinstance(result.error, echo.Unreachable)
    assert result.error.phase == Phase.connect
    assert str(result.error) == "connection refused"
    assert result.error.detail == f"{refusing.host_port}: connection refused; {other.host_port}: connection refused"
    assert result.local is None


@pytest.mark.parametrize("backwards", [False, True])
def test_refused_tells_more_than_no_way(refusing: Endpoint, resolve_to: ResolveTo, backwards: bool) -> None:
    endpoints = [NO_WAY, refusing]
    result = echo.probe(resolve_to(*(reversed(endpoints) if backwards else endpoints)))
    assert str(result.error) == "connection refused"
    assert result.remote == refusing.host_port, "the address is that of the peer that refused"


@linux
@pytest.mark.parametrize("backwards", [False, True])
def test_refused_tells_more_than_silence(
    refusing: Endpoint, dropping: Endpoint, resolve_to: ResolveTo, backwards: bool
) -> None:
    endpoints = [dropping, refusing]
    result = echo.probe(resolve_to(*(reversed(endpoints) if backwards else endpoints)), timeout=0.3)
    assert isinstance(result.error, echo.Unreachable)
    assert str(result.error) == "connection refused"
    assert result.remote == refusing.host_port, "the address is that of the peer that refused"


@linux
@pytest.mark.parametrize("backwards", [False, True])
def test_silence_tells_more_than_no_way(dropping: Endpoint, resolve_to: ResolveTo, backwards: bool) -> None:
    endpoints = [NO_WAY, dropping]
    result, elapsed = timed_probe(resolve_to(*(reversed(endpoints) if backwards else endpoints)), timeout=0.4)
    assert isinstance(result.error, echo.TimedOut)
    assert result.error.phase == Phase.connect
    assert result.remote == dropping.host_port, "the address is that of the peer that is silent"
    assert elapsed < HANGS


@linux
@pytest.mark.parametrize("backwards", [False, True])
def test_the_time_it_says_it_waited_was_waited(dropping: Endpoint, resolve_to: ResolveTo, backwards: bool) -> None:
    endpoints = [NO_WAY, dropping]
    result, elapsed = timed_probe(resolve_to(*(reversed(endpoints) if backwards else endpoints)), timeout=0.4)
    said = re.search(r"no answer within ([0-9.]+) s", str(result.error))
    assert said is not None
    assert elapsed >= float(said[1]) - 0.05


# --- Names that are slow ---------------------------------------------------------------------------------------------


def test_a_look_up_that_hangs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, flags: int = 0) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            release.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with nothing_left_behind(patience=5):  # the thread ends with the look-up
        try:
            result, elapsed = timed_probe("slow.test", timeout=0.3)
        finally:
            release.set()
    assert isinstance(result.error, echo.TimedOut)
    assert (result.error.phase, str(result.error)) == (Phase.resolve, "no answer within 0.3 s")
    assert result.error.hint == "the name server does not answer: try the IP address of the host"
    assert list(result.timings) == ["resolve"]
    assert 0.25 < elapsed < HANGS


def test_a_slow_look_up_is_paid_from_the_same_limit(peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, flags: int = 0) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        time.sleep(0.2)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", peer.port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    result = echo.probe("slow.test", timeout=5)
    assert result.ok
    assert result.timings[Phase.resolve] >= 0.19
    peer.scripts = [script(accept=None)]
    result, elapsed = timed_probe("slow.test", timeout=1)
    assert result.error is not None
    assert result.error.phase == Phase.associate
    assert elapsed < HANGS


def test_a_literal_address_needs_no_thread(peer: RawPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    echo.send(peer.address)
    started: list[str] = []
    start = threading.Thread.start

    def note(self: threading.Thread) -> None:
        started.append(self.name)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", note)
    echo.send(peer.address)
    assert [name for name in started if not name.startswith("RawPeer")] == []


# --- Threads and sockets ---------------------------------------------------------------------------------------------


def test_many_threads_at_once(peer: RawPeer) -> None:
    mine = Counter()
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda _: echo.probe(peer.address, message_id=mine), range(72)))
    assert [str(result.error) for result in results if not result.ok] == []
    assert sorted(result.message_id for result in results) == list(range(1, 73))
    assert {result.status for result in results} == {0}


FIRST_ECHOES = """
import sys, concurrent.futures, dicom_echo
assert "pynetdicom" not in sys.modules
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(sorted(set(pool.map(lambda _: dicom_echo.send(sys.argv[1]), range(16)))))
"""


def test_the_first_echoes_of_a_process_from_many_threads(peer: RawPeer) -> None:
    done = run_process([sys.executable, "-c", FIRST_ECHOES, peer.address])
    assert (done.out, done.err, done.code) == ("[0]\n", "", 0)


@pytest.mark.parametrize(
    "steps", [pytest.param(GOOD_SCRIPT, id="ok"), *(pytest.param(steps, id=kind) for _, kind, steps in FAILURES)]
)
def test_no_socket_and_no_thread_is_left_behind(steps: Script) -> None:
    with RawPeer() as peer:
        echo.send(peer.address)  # what is loaded on first use is not counted
    with nothing_left_behind(), RawPeer(steps) as peer:
        for _ in range(3):
            echo.probe(peer.address, timeout=0.1)


def test_nothing_is_left_behind_without_a_connection(refusing: Endpoint) -> None:
    with nothing_left_behind(patience=5):
        for address in (refusing.address, "no-such-host.invalid"):
            assert not echo.probe(address, timeout=2).ok


# --- Importing -------------------------------------------------------------------------------------------------------

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
witness = {
    "code": code,
    "heavy": [name for name in ("pynetdicom", "pydicom", "numpy") if name in sys.modules],
    "threads": threading.active_count(),
    "handlers": len(logging.getLogger().handlers) + len(own.handlers),
    "level": own.level,
}
print(json.dumps(witness), file=sys.stderr)
"""


def witness(*arguments: str) -> dict[str, object]:
    done = run_process([sys.executable, "-c", WITNESS, *arguments], environment(NO_COLOR="1"))
    assert done.code == 0, done.err
    seen: dict[str, object] = json.loads(done.err.splitlines()[-1])
    return seen


def test_importing_is_cheap_and_has_no_side_effects() -> None:
    assert witness() == {"code": None, "heavy": [], "threads": 1, "handlers": 0, "level": logging.NOTSET}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["--quiet"], 2),
        (["pacs:0"], 2),
        (["--no-such-option", "pacs"], 2),
        (["--source", "192.0.2.1", "pacs"], 2),
        (["no-such-host.invalid"], 3),
    ],
    ids=str,
)
def test_who_reaches_no_peer_does_not_pay_for_the_codec(arguments: list[str], code: int) -> None:
    seen = witness(*arguments)
    assert seen == {"code": code, "heavy": [], "threads": 1, "handlers": 0, "level": logging.NOTSET}


@pytest.mark.parametrize("options", [[], ["-v"], ["--format", "json"]], ids=str)
def test_a_closed_port_does_not_pay_for_the_codec(refusing: Endpoint, options: list[str]) -> None:
    seen = witness(*options, refusing.address)
    assert (seen["code"], seen["heavy"]) == (3, [])


# --- Logging ---------------------------------------------------------------------------------------------------------


def test_every_pdu_is_logged_for_debugging(peer: RawPeer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        echo.send(peer.address, message_id=1)
    mine = [record for record in caplog.records if record.name == "dicom_echo"]
    assert [record.getMessage().partition(",")[0] for record in mine] == [
        "sent A-ASSOCIATE-RQ",
        "received A-ASSOCIATE-AC",
        "sent P-DATA-TF",
        "received P-DATA-TF",
        "sent A-RELEASE-RQ",
        "received A-RELEASE-RP",
    ]
    assert {record.levelno for record in mine} == {logging.DEBUG}
    assert peer.conversation().types == [A_ASSOCIATE_RQ, P_DATA_TF, A_RELEASE_RQ]


def test_nothing_is_logged_otherwise(peer: RawPeer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dicom_echo"):
        echo.send(peer.address)
        with closed_port() as nobody:
            echo.probe(nobody.address)
    assert [record for record in caplog.records if record.name == "dicom_echo"] == []
