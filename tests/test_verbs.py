"""Chapter 5, the verbs: what they take, what they refuse before anything is sent, what they give back and leave."""

from __future__ import annotations

import contextlib
import errno
import gc
import inspect
import itertools
import json
import logging
import pickle
import re
import ssl
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import rawpeer
from canned import Canned, run_canned
from certificates import issue, server_context
from command import environment, run_process
from leaks import no_more_files, nothing_left_behind
from rawpeer import Endpoint, RawPeer, Script, close, closed_port, full_listener, script

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


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with run_canned(live=64, silent=24) as peers:
        yield peers


def addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    return [endpoint.address for endpoint in endpoints]


@pytest.fixture
def untouched() -> Iterator[str]:
    """The address of a peer that nobody connects to."""
    with RawPeer() as peer:
        yield peer.address
        echo.send(peer.address)  # connections are accepted in their order: nobody came before this one
        assert len(peer.received) == 1


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
    assert [str(phase) for phase in Phase] == ["resolve", "connect", "tls", "associate", "echo", "release"]


def test_the_signatures() -> None:
    for verb in (echo.send, echo.probe, echo.probe_many):
        first, *titles = list(inspect.signature(verb).parameters.values())[:4]
        assert first.kind is first.POSITIONAL_ONLY
        assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in titles)
        defaults = {"called_ae_title": "ANY-SCP", "calling_ae_title": "ECHOSCU", "message_id": echo.counter}
        assert {each.name: each.default for each in titles} == defaults


def test_the_manual_names_every_option() -> None:
    assert all(f"\n{name} : " in (inspect.getdoc(echo.probe) or "") for name in echo.Options.__annotations__)


# --- Calls -----------------------------------------------------------------------------------------------------------


def test_titles_and_message_id(peer: RawPeer) -> None:
    """By position as in the Rust package, or by their names."""
    positions: Any = "STORE", "ME", 7
    names: Any = {"message_id": 7, "calling_ae_title": " ME ", "called_ae_title": " STORE"}
    for verb in (send, probe, probe_one):
        for result in (verb(peer.address, *positions), verb(peer.address, **names)):
            assert (result if verb is send else result.status) == 0
    sent = [peer.conversation(number) for number in range(6)]
    fields = {(each.request.called_field, each.request.calling_field, *each.message_ids) for each in sent}
    assert fields == {(b"STORE           ", b"ME              ", 7)}


# --- Counter and message ids -----------------------------------------------------------------------------------------


def test_the_shared_counter_counts_up(peer: RawPeer) -> None:
    before = echo.probe(peer.address).message_id
    after = [echo.probe(peer.address).message_id, *(each.message_id for each in echo.probe_many([peer.address] * 2))]
    assert after == [(before + step - 1) % 0xFFFF + 1 for step in (1, 2, 3)]
    assert [peer.conversation(number).message_ids[0] for number in range(4)] == [before, *after]


def test_a_counter_of_ones_own_wraps_to_one_and_is_safe_in_threads(peer: RawPeer) -> None:
    mine, interval = Counter(), sys.getswitchinterval()
    assert [echo.probe(peer.address, message_id=mine).message_id for _ in range(3)] == [1, 2, 3]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            ids = pool.map(lambda _: [mine.increment() for _ in range(4096)], range(16))
            assert sorted(itertools.chain(*ids)) == sorted([*range(4, 65536), 1, 2, 3, 4])
    finally:
        sys.setswitchinterval(interval)


# --- The caller's mistakes -------------------------------------------------------------------------------------------

OUT_OF_RANGE = "the message ID must be in the range 0-65535, not {!r}"
MISTAKES: list[tuple[type[Exception], str, dict[str, Any]]] = [  # one of each kind; all of them: test_request
    (AddressError, "the AE title is empty", {"called_ae_title": ""}),
    (AddressError, "the AE title must be text, not b'ME'", {"calling_ae_title": b"ME"}),
    (ValueError, "timeout must be a number above 0 and up to 86400, not 0", {"timeout": 0}),
    (TypeError, "unknown option 'timeouts'; the options", {"timeouts": 1}),
    *((AddressError, OUT_OF_RANGE.format(wrong), {"message_id": wrong})
      for wrong in (-1, 65536, "1", 1.5, 1.0, None, True)),
]  # fmt: skip


def test_mistakes_are_raised_before_anything_is_sent(untouched: str) -> None:
    mine = Counter()
    for verb, (error, why, options) in itertools.product((send, probe, probe_one), MISTAKES):
        with pytest.raises(error, match=f"^{re.escape(why)}"):
            pytest.fail(f"{options}: {verb(untouched, **{'message_id': mine, **options})}")
    assert mine.increment() == 1, "a refused call uses no message ID"


def test_probe_many_checks_everything_before_the_first_is_asked(untouched: str) -> None:
    def failing() -> Iterator[str]:
        yield untouched
        raise KeyError("mine")

    for given, options, error, why in (
        ([untouched, "bad::x"], {}, AddressError, "bad::x"),
        (iter([untouched, "bad::x"]), {}, AddressError, "bad::x"),
        (failing(), {}, KeyError, "mine"),
        (untouched, {}, TypeError, f"addresses must be an iterable of addresses, not {untouched!r}"),
        (Address(None, "pacs", 1), {}, TypeError, "addresses must be an iterable of addresses, not Address"),
        ([untouched], {"jobs": 0}, ValueError, "jobs must be a whole number of at least 1, not 0"),
        ([untouched], {"jobs": 1.5}, ValueError, "jobs must be a whole number of at least 1, not 1.5"),
    ):  # fmt: skip
        with pytest.raises(error, match=re.escape(why)):
            probe_many(given, **options)
    assert list(echo.probe_many([])) == []
    assert inspect.isgenerator(echo.probe_many([untouched])), "nothing is sent before the first result is wanted"
    assert workers() == []


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
    assert pickle.loads(pickle.dumps(result)) == result


def test_a_status_is_returned() -> None:
    with RawPeer(script(echo=rawpeer.echo_rsp(1, 0x0122))) as peer:
        assert echo.send(peer.address, message_id=1) == 0x0122
        result = echo.probe(peer.address, message_id=1)
    assert (bool(result), result.status, result.error) == (False, 0x0122, None)
    assert list(result.timings) == [each for each in Phase if each != Phase.tls]


FAILURES: dict[str, Script] = {
    "rejected": script(accept=rawpeer.associate_rj(2, 3, 1)),
    "not-supported": script(accept=rawpeer.associate_ac([(1, 3, None)])),
    "aborted": script(accept=rawpeer.abort(2, 6)),
    "lost": script(accept=close),
    "protocol": script(accept=b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "timeout": script(accept=None),
}


def test_send_raises_what_probe_returns_and_nothing_is_left_behind() -> None:
    twice = [played for played in FAILURES.values() for _ in range(2)]
    with nothing_left_behind(), RawPeer(*twice) as peer:
        for kind in FAILURES:
            seconds = 0.2 if kind == "timeout" else 20
            result = echo.probe(peer.address, timeout=seconds)
            with pytest.raises(EchoError) as caught:
                echo.send(peer.address, timeout=seconds)
            assert (type(result.error), vars(result.error)) == (type(caught.value), vars(caught.value))
            assert (result.kind, result.status, result.peer) == (kind, None, None)
            assert (result.remote, list(result.timings)[-1]) == (peer.endpoint.host_port, result.phase)
            assert result.local
            assert pickle.loads(pickle.dumps(result)).to_dict() == result.to_dict()


def test_failures_without_a_connection(refusing: Endpoint) -> None:
    refused, unknown = echo.probe(refusing.address, timeout=60), echo.probe("no-such-host.invalid")
    assert (refused.local, refused.remote, refused.port) == (None, refusing.host_port, refusing.port)
    assert refused.total < 20, "it does not wait for more"
    assert (unknown.local, unknown.remote, unknown.port, unknown.phase) == (None, None, 104, Phase.resolve)


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


@pytest.mark.parametrize("tls", [False, True])
def test_closing_early_ends_all_at_once_and_leaves_nothing(canned: Canned, tmp_path: Path, tls: bool) -> None:
    """Those that wait for a connection, for the other side of TLS, and for an answer."""
    context = ssl.create_default_context() if tls else None
    if context:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with RawPeer(ssl_context=server_context(tmp_path, issue("pacs"))) as over_tls, full_listener() as full:
        good = over_tls.address if tls else canned.live[0].address
        echo.probe(good, tls=context)
        with nothing_left_behind(patience=20 if tls else 0):  # the threads of a peer in this process have to end, too
            results = echo.probe_many([full.address, *addresses(canned.silent), good], timeout=60, tls=context)
            assert next(results).ok
            assert len(workers()) == 1
            begun = time.monotonic()
            results.close()
            assert workers() == []
            assert time.monotonic() - begun < 20
            assert list(results) == []


def test_echoes_do_not_wait_for_who_reads_their_results() -> None:
    """Else the pauses of a slow reader would be counted as the peers'."""
    with RawPeer() as first, RawPeer() as second, RawPeer() as third:
        results = echo.probe_many([first.address, second.address, third.address], jobs=1)
        assert next(results).ok
        assert third.conversation(timeout=20).message_ids, "while nobody asks for a second result"
        assert [result.ok for result in results] == [True, True]


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


def test_memory_does_not_grow_with_the_targets_that_are_done(canned: Canned) -> None:
    asked = list(itertools.islice(itertools.cycle(addresses(canned.live)), 450))
    tracemalloc.start()
    try:
        with contextlib.closing(echo.probe_many(asked, jobs=8)) as results:
            sizes = []
            for number in (150, 250):
                list(itertools.islice(results, number))
                gc.collect()  # what hangs together in a circle is not held, only not yet gone
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 250_000


def test_an_echo_leaves_no_circle_for_the_garbage_collector(peer: RawPeer) -> None:
    gc.collect()
    gc.disable()
    try:
        assert echo.probe(peer.address).ok
        assert not [each for each in gc.get_objects() if isinstance(each, (echo._Association, echo._Dialogue))]
    finally:
        gc.enable()


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


FROM_MANY_THREADS = """
import concurrent.futures, sys, dicom_echo
assert "pynetdicom" not in sys.modules
mine = dicom_echo.Counter()
def ask(address):
    one = dicom_echo.probe(address, message_id=mine)
    return [one, *dicom_echo.probe_many([address, "127.0.0.1:1"], message_id=mine)]
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    results = sum(pool.map(ask, sys.argv[1:] * 16), [])
print(sorted(each.message_id for each in results) == list(range(1, 49)), sum(each.ok for each in results))
"""


def test_the_first_echoes_of_a_process_from_many_threads(peer: RawPeer) -> None:
    assert run_process([sys.executable, "-c", FROM_MANY_THREADS, peer.address]) == (0, "True 32\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_no_file_descriptors_are_this_host_s_trouble(canned: Canned) -> None:
    live = canned.live[0]
    echo.send(live.address)  # what is imported on first use needs descriptors, too
    with no_more_files():
        results = [echo.probe(live.address), echo.probe(f"localhost:{live.port}")]
        results += echo.probe_many([live.address, f"127.0.0.2:{live.port}"])
    for result in results:
        assert isinstance(result.error, echo.Unreachable)
        assert (result.error.errno, result.hint.partition(":")[0]) == (errno.EMFILE, "the problem is on this host")


# --- Importing and logging -------------------------------------------------------------------------------------------

WITNESS = """
import json, sys
import dicom_echo
told = []
for arguments in json.load(sys.stdin):
    try:
        code = dicom_echo.main(arguments)
    except SystemExit as left:
        code = left.code
    told.append([code, *({"pynetdicom", "pydicom", "numpy"} & sys.modules.keys())])
print(json.dumps(told))
"""


def test_who_reaches_no_peer_does_not_pay_for_the_codec() -> None:
    asked: dict[str, int] = {
        "--help": 0, "--version": 0, "--quiet": 2, "pacs:0": 2, "--no-such-option pacs": 2,
        "--source 192.0.2.1 pacs": 2, "no-such-host.invalid": 3, "127.0.0.1:1": 3, "-v 127.0.0.1:1": 3,
        "--format json 127.0.0.1:1": 3,
    }  # fmt: skip
    arguments = json.dumps([each.split() for each in asked]).encode()
    done = run_process([sys.executable, "-c", WITNESS], environment(NO_COLOR="1"), stdin=arguments)
    assert json.loads(done.out.splitlines()[-1]) == [[code] for code in asked.values()]


def test_every_pdu_is_logged_for_debugging_and_nothing_otherwise(
    peer: RawPeer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="dicom_echo"), closed_port() as nobody:
        echo.send(peer.address)
        echo.probe(nobody.address)
    assert caplog.record_tuples == []
    with caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        echo.send(peer.address, message_id=1)
    assert [(record.name, record.levelno) for record in caplog.records] == [("dicom_echo", logging.DEBUG)] * 6
    heads = [record.getMessage().partition("\n")[0] for record in caplog.records]
    assert [re.sub(r"^\S+ \S+ |\d+ bytes, ", "", head) for head in heads] == [
        f"sent A-ASSOCIATE-RQ, to {peer.address}", f"received A-ASSOCIATE-AC, from {peer.address}",
        f"sent P-DATA-TF, to {peer.address}", f"received P-DATA-TF, from {peer.address}",
        f"sent A-RELEASE-RQ, to {peer.address}", f"received A-RELEASE-RP, from {peer.address}",
    ]  # fmt: skip


def test_logging_is_not_timed(peer: RawPeer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that each record advances by an hour."""
    clock, hours = time.perf_counter, [0]

    def slow(_: logging.LogRecord) -> bool:
        hours[0] += 1
        return True

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * hours[0])
    with caplog.at_level(logging.DEBUG, logger="dicom_echo"):
        caplog.handler.addFilter(slow)
        result = echo.probe(peer.address, timeout=86400)
    assert hours == [6]
    assert sum(result.timings.values()) < 3600
