"""`probe_many`: many peers from Python; what it costs, and that it leaves nothing behind."""

import contextlib
import gc
import itertools
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from canned import Canned, run_canned
from leaks import nothing_left_behind
from peers import Peer
from rawpeer import Endpoint, RawPeer, closed_port, full_listener, silent_listener

import dicom_echo as echo


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with run_canned(live=64, silent=24) as peers:
        yield peers


def addresses(endpoints: Iterable[Endpoint]) -> list[str]:
    return [endpoint.address for endpoint in endpoints]


def workers() -> list[threading.Thread]:
    """The threads of the module that are alive; those of a name look-up that hangs are left behind on purpose."""
    return [thread for thread in threading.enumerate() if thread.name == "dicom-echo"]


def test_a_result_for_each_address(pynetdicom_scp: Peer, storescp: Peer, orthanc: Peer) -> None:
    with closed_port() as closed:
        asked: list[str | echo.Address] = [*addresses([pynetdicom_scp, storescp, orthanc, closed])]
        asked.append(echo.parse_address(storescp.address))
        results = list(echo.probe_many(asked, timeout=10))
    kinds = sorted((str(result.address), result.kind) for result in results)
    good = addresses([pynetdicom_scp, storescp, storescp, orthanc])
    assert kinds == sorted([*((address, "ok") for address in good), (closed.address, "unreachable")])


def test_takes_what_probe_takes() -> None:
    with RawPeer() as peer:
        [result] = echo.probe_many([peer.endpoint.host_port], "CALLED", "CALLING", 77, abort=True)
        request = peer.conversation().request
    assert (request.called, request.calling, result.message_id, result.ok) == ("CALLED", "CALLING", 77, True)


def test_message_ids_come_from_the_counter(canned: Canned) -> None:
    counter = echo.Counter()
    results = echo.probe_many(addresses(canned.live[:20]), message_id=counter, jobs=5)
    assert sorted(result.message_id for result in results) == list(range(1, 21))


def test_a_list_is_checked_before_any_is_asked() -> None:
    with RawPeer() as peer, pytest.raises(echo.AddressError, match="bad::x"):
        echo.probe_many([peer.address, "bad::x"])
    assert peer.received == []


@pytest.mark.parametrize(
    ("addresses", "options", "error"),
    [
        ("pacs", {}, TypeError),
        (echo.parse_address("pacs"), {}, TypeError),
        (["pacs"], {"jobs": 0}, ValueError),
        (["pacs"], {"message_id": 70000}, echo.AddressError),
    ],
)
def test_mistakes_are_told_by_the_call(addresses: Any, options: dict[str, int], error: type[Exception]) -> None:
    """Not only when the first result is asked for."""
    with pytest.raises(error):
        echo.probe_many(addresses, **options)  # type: ignore[arg-type]


def test_anything_else_is_read_as_far_as_needed() -> None:
    with RawPeer() as peer:
        results = echo.probe_many(iter([peer.address, "bad::x"]), jobs=1)
        assert next(results).ok
        with pytest.raises(echo.AddressError, match="bad::x"):
            next(results)


def test_nothing_to_ask() -> None:
    assert list(echo.probe_many([])) == []


def test_nothing_is_sent_before_the_first_result_is_wanted() -> None:
    with RawPeer() as peer:
        results = echo.probe_many([peer.address])
        time.sleep(0.1)
        assert peer.received == []
        assert next(iter(results)).ok


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_below_one_are_a_mistake(jobs: int) -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        next(iter(echo.probe_many(["localhost"], jobs=jobs)))


def test_a_bad_address_is_raised_and_leaves_no_thread(canned: Canned) -> None:
    asked = [canned.live[0].address, *addresses(canned.silent[:3]), "host:99999"]
    with pytest.raises(echo.AddressError):
        list(echo.probe_many(asked, timeout=20))
    assert workers() == []


def test_an_exception_of_the_caller_s_iterable_is_raised(canned: Canned) -> None:
    def failing() -> Iterator[str]:
        yield from addresses(canned.live[:3])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(echo.probe_many(failing(), jobs=1))
    assert workers() == []


def test_addresses_are_read_as_needed(canned: Canned) -> None:
    counted = itertools.count()
    endless = (canned.live[next(counted) % 64].address for _ in itertools.repeat(None))
    with contextlib.closing(echo.probe_many(endless, jobs=4)) as results:
        assert [next(results).ok for _ in range(20)] == [True] * 20
    assert next(counted) <= 20 + 2 * 4


def test_an_endless_iterable_of_one_address_does_not_fill_the_memory(canned: Canned) -> None:
    """All but the first have to wait for their turn: they need not be read for that."""
    counted = itertools.count()

    def endless() -> Iterator[str]:
        while next(counted) < 100_000:
            yield canned.live[0].address
        raise OverflowError("far more is read than needed")

    with contextlib.closing(echo.probe_many(endless(), jobs=4)) as results:
        assert [next(results).ok for _ in range(3)] == [True] * 3


def unresponsive(kind: str, canned: Canned, stack: contextlib.ExitStack) -> list[str]:
    """Peers of which nothing ever comes back."""
    if kind == "no SYN-ACK":
        return [stack.enter_context(full_listener()).address for _ in range(4)]
    return addresses(canned.silent)


@pytest.mark.parametrize("kind", ["silent", "no SYN-ACK", "TLS"])
def test_closing_early_ends_every_thread_at_once(canned: Canned, tls_scp: Peer, kind: str) -> None:
    context = ssl.create_default_context() if kind == "TLS" else None
    if context:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        live = tls_scp.address if context else canned.live[0].address
        asked = [*unresponsive(kind, canned, stack), live]
        results = stack.enter_context(contextlib.closing(echo.probe_many(asked, timeout=20, tls=context)))
        assert next(results).ok
        assert len(workers()) == len(asked)
        begun = time.monotonic()
        results.close()
        assert time.monotonic() - begun < 5
        assert workers() == []


def test_a_loop_that_is_left_early_leaves_no_thread(canned: Canned) -> None:
    for result in echo.probe_many([canned.live[0].address, *addresses(canned.silent)], timeout=20):
        assert result.ok
        break
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() == []


def test_a_silent_peer_takes_its_time_and_no_more() -> None:
    with silent_listener() as silent, RawPeer() as good:
        begun = time.monotonic()
        first, second = echo.probe_many([silent.address, good.address], timeout=1)
    assert (first.kind, second.kind) == ("ok", "timeout")
    assert 0.9 < time.monotonic() - begun < 4


def test_several_threads_may_use_it_at_once(canned: Canned) -> None:
    counter, results = echo.Counter(), list[echo.EchoResult]()

    def ask() -> None:
        results.extend(echo.probe_many(addresses(canned.live[:16]), message_id=counter, jobs=4))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.ok for result in results] == [True] * 96
    assert sorted(result.message_id for result in results) == list(range(1, 97))


# --- What it costs ---------------------------------------------------------------------------------------------------


def many(canned: Canned, number: int) -> Iterator[str]:
    """So many addresses, one port after the other."""
    return (endpoint.address for endpoint in itertools.islice(itertools.cycle(canned.live), number))


def test_500_echoes_leave_no_file_and_no_thread_behind(canned: Canned) -> None:
    echo.send(canned.live[0].address)  # what is loaded once is not counted
    with nothing_left_behind():
        for address in many(canned, 250):
            assert echo.send(address) == 0
        assert all(result.ok for result in echo.probe_many(many(canned, 250)))


def test_500_failures_leave_no_file_and_no_thread_behind(canned: Canned) -> None:
    with closed_port() as closed:
        echo.probe(closed.address)
        with nothing_left_behind():
            assert {echo.probe(closed.address).kind for _ in range(200)} == {"unreachable"}
            kinds = {result.kind for result in echo.probe_many(addresses(canned.silent) * 13, timeout=0.05)}
            assert kinds == {"timeout"}


def test_memory_does_not_grow_with_the_targets_that_are_done(canned: Canned) -> None:
    results = echo.probe_many(many(canned, 1300), jobs=8)
    tracemalloc.start()
    try:
        list(itertools.islice(results, 200))
        gc.collect()  # what hangs together in a circle is not held, only not yet gone
        early = tracemalloc.get_traced_memory()[0]
        list(itertools.islice(results, 1000))
        gc.collect()
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late - early < 500_000  # a thousand results take 2 MB and more
    assert sum(1 for _ in results) == 100
