"""Every code with which a peer may refuse: A-ASSOCIATE-RJ, A-ABORT and presentation context results, reserved ones too.

The called AE title tells the peer which one to answer with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import rawpeer
from inprocess import run
from rawpeer import A_ASSOCIATE_RQ, Conversation, Endpoint, Expect, RawPeer, Send, script

import dicom_echo as echo
from dicom_echo import Aborted, NotSupported, Phase, Rejected

TRANSIENT = "   hint: the peer is out of associations for the moment: try again later"
UNSAID = "   hint: some peers abort instead of rejecting: check both AE titles, and whether the peer admits this host"


def codes(conversation: Conversation) -> tuple[int, ...]:
    """The numbers in the called AE title."""
    return tuple(map(int, conversation.request.called.split()[1:]))


def refusal(conversation: Conversation) -> bytes:
    """What the called AE title asks for."""
    word, *_ = conversation.request.called.split()
    if word == "RJ":
        return rawpeer.associate_rj(*codes(conversation))
    return rawpeer.abort(*codes(conversation))


def late_abort(conversation: Conversation) -> bytes:
    """The abort that the called AE title asks for."""
    return rawpeer.abort(*codes(conversation))


@pytest.fixture(scope="module")
def refusing() -> Iterator[Endpoint]:
    """A peer that refuses the association as it is told to."""
    with RawPeer((Expect(A_ASSOCIATE_RQ), Send(refusal))) as peer:
        yield peer.endpoint


@pytest.fixture(scope="module")
def aborting() -> Iterator[Endpoint]:
    """A peer that accepts the association, and aborts it as it is told to when the echo comes."""
    with RawPeer(script(echo=late_abort)) as peer:
        yield peer.endpoint


# --- A-ASSOCIATE-RJ (PS3.8 Table 9-21) -------------------------------------------------------------------------------

RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
HINTS = {
    (1, 1): "   hint: the peer does not say why; often one of the two AE titles, or this host, is not known to it",
    (2, 1): "   hint: the peer does not say why; often one of the two AE titles, or this host, is not known to it",
    (1, 3): '   hint: ask the administrator of the peer to register the calling AE title "ECHOSCU" '
    "together with the address of this host, LOCAL",
    (1, 7): '   hint: the peer does not answer to "{called}"; use the AE title that is configured on it: '
    "AE@HOST:PORT or -aec AE (upper and lower case count)",
    (3, 1): TRANSIENT,
    (3, 2): TRANSIENT,
}


def reject_text(called: str, result: int, source: int, reason: int) -> str:
    """What the command prints."""
    lines = [
        f"❌ Rejected: {REASONS.get((source, reason), 'reserved reason')}",
        f"   while associating with {called}@HOST:PORT as ECHOSCU: {RESULTS.get(result, f'result {result}')}, "
        f"{SOURCES.get(source, f'source {source}')}, reason {reason}",
        *([HINTS[source, reason].format(called=called)] if (source, reason) in HINTS else []),
    ]
    return "\n".join(lines) + "\n"


TRIPLES = [*itertools.product((1, 2, 9), (1, 2, 3, 7), range(1, 11)), (0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("result", "source", "reason"), TRIPLES)
def test_every_rejection(
    result: int, source: int, reason: int, refusing: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    called = f"RJ {result} {source} {reason}"
    error = echo.probe(refusing.address, called).error
    assert type(error) is Rejected
    assert (error.result, error.source, error.reason) == (result, source, reason)
    assert error.facts == {"result": result, "source": source, "reason": reason}
    assert (error.kind, error.phase) == ("rejected", Phase.associate)
    ran = run(capsys, refusing, "-aec", called)
    assert ran[:3] == (1, reject_text(called, result, source, reason), "")


def test_the_registration_hint_names_the_calling_title_used(
    refusing: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, refusing, "-aec", "RJ 1 1 3", "-aet", "MY STATION")
    assert 'register the calling AE title "MY STATION" together with the address of this host, LOCAL\n' in ran.out


# --- A-ABORT (PS3.8 Table 9-26) --------------------------------------------------------------------------------------

ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
PAIRS = list(itertools.product((0, 1, 2, 3, 255), (*range(8), 255)))


def abort_text(doing: str, source: int, reason: int) -> str:
    """What the command prints: the user of the service gives no reason, whatever the field holds."""
    if source == 0:
        return f"❌ Aborted: no reason given\n{doing}: service-user\n{UNSAID}\n"
    by = "service-provider" if source == 2 else f"source {source}"
    headline = f"❌ Aborted: {ABORT_REASONS.get(reason, 'reserved reason')}\n"
    return f"{headline}{doing}: {by}, reason {reason}\n" + (f"{UNSAID}\n" if reason == 0 else "")


@pytest.mark.parametrize(("source", "reason"), PAIRS)
def test_every_abort_of_an_association(
    source: int, reason: int, refusing: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    called = f"ABORT {source} {reason}"
    error = echo.probe(refusing.address, called).error
    assert type(error) is Aborted
    assert (error.source, error.reason, error.phase) == (source, reason, Phase.associate)
    assert error.facts == {"source": source, "reason": reason}
    ran = run(capsys, refusing, "-aec", called)
    doing = f"   while associating with {called}@HOST:PORT as ECHOSCU"
    assert ran[:3] == (1, abort_text(doing, source, reason), "")


@pytest.mark.parametrize(("source", "reason"), PAIRS)
def test_every_abort_of_an_echo(
    source: int, reason: int, aborting: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    called = f"ABORT {source} {reason}"
    error = echo.probe(aborting.address, called).error
    assert type(error) is Aborted
    assert (error.source, error.reason, error.phase) == (source, reason, Phase.echo)
    ran = run(capsys, aborting, "-aec", called)
    doing = f"   while echoing {called}@HOST:PORT as ECHOSCU"
    assert ran[:3] == (1, abort_text(doing, source, reason), "")


# --- Presentation context results (PS3.8 Table 9-18) -----------------------------------------------------------------

REFUSED = "   hint: the peer knows the AE title but refuses Verification"


@pytest.mark.parametrize(
    ("result", "why", "hint"),
    [
        (1, "user rejection", REFUSED),
        (2, "no reason", REFUSED),
        (
            3,
            "abstract syntax not supported",
            "   hint: the peer knows the AE title but does not offer Verification to us",
        ),
        (
            4,
            "transfer syntaxes not supported",
            "   hint: the peer offers Verification, but with none of the transfer syntaxes proposed: "
            "see --transfer-syntax",
        ),
        (5, "reserved result", REFUSED),
        (255, "reserved result", REFUSED),
    ],
)
@pytest.mark.parametrize("transfer_syntax", [None, "", rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, "not a UID"])
def test_every_context_result_but_acceptance(
    result: int, why: str, hint: str, transfer_syntax: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with RawPeer(script(accept=rawpeer.associate_ac([(1, result, transfer_syntax)]))) as peer:
        error = echo.probe(peer.address).error
        ran = run(capsys, peer.endpoint)
    assert type(error) is NotSupported
    assert (error.result, error.facts, error.phase) == (result, {"result": result}, Phase.associate)
    doing = f"   while associating with ANY-SCP@HOST:PORT as ECHOSCU: presentation context result {result}"
    assert ran[:3] == (1, f"❌ Not supported: {why}\n{doing}\n{hint}\n", "")


def test_acceptance_is_result_0(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer(script(accept=rawpeer.associate_ac([(1, 0, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN)]))) as peer:
        assert run(capsys, peer.endpoint)[:3] == (0, "✅ Success\n", "")


def test_a_refused_context_beside_the_accepted_one_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    contexts = [(3, 3, None), (1, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN), (5, 4, None)]
    with RawPeer(script(accept=rawpeer.associate_ac(contexts))) as peer:
        assert run(capsys, peer.endpoint)[:3] == (0, "✅ Success\n", "")
