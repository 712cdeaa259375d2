"""The dialogue without a socket: bytes in, events out, the same however they are cut and whatever follows them."""

from __future__ import annotations

import contextlib
import itertools
import os
import ssl
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import fuzz
import pytest
import rawpeer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import config
from rawpeer import COMMAND, GOOD_ACCEPT, GOOD_ECHO, GOOD_RELEASE, LAST, Pdv

import dicom_echo as echo
from dicom_echo import Aborted, ConnectionLost, EchoError, NotSupported, Phase, ProtocolError, Rejected

RSP = rawpeer.echo_rsp_command(1)
IMPLICIT, EXPLICIT = rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN
PEER = echo.Peer(rawpeer.IMPLEMENTATION_CLASS_UID, rawpeer.VERSION_NAME, 16384, IMPLICIT)
FAULTY = "the peer's DICOM is faulty,"


class Failure(NamedTuple):
    """The facts of an EchoError; `received` is left out, since it depends on how much had come."""

    error: type[EchoError]
    phase: Phase | None
    message: str
    detail: str = ""
    facts: tuple[tuple[str, object], ...] = ()
    hint: str = ""  # its first words; the whole is in the reports' golden file


class Heard(NamedTuple):
    """What the events of a stream say."""

    status: int | None = 0
    notes: tuple[str, ...] = ()
    peer: echo.Peer | None = PEER
    released: bool = False
    failure: Failure | None = None


def hear_pieces(pieces: Iterable[bytes], last: Phase, request: echo._Request) -> Heard:
    """Go through the phases of an echo up to the last; `pieces` come from the peer, and an empty one is the end."""
    dialogue, told, waiting = echo._Dialogue(request), echo._Echo(request, 1, 10), iter(pieces)
    steps = {Phase.associate: dialogue.associate, Phase.echo: lambda: dialogue.echo(1), Phase.release: dialogue.release}
    heard = Heard(None, peer=None)
    try:
        for phase, step in steps.items():
            with told.phase(phase):
                step()
                while (event := dialogue.next_event()) is None:
                    dialogue.receive_data(next(waiting))
            if isinstance(event, echo._Accepted):
                heard = heard._replace(peer=event.peer, notes=tuple(event.notes))
            elif isinstance(event, echo._Answered):
                heard = heard._replace(status=event.status, notes=(*heard.notes, *event.notes))
            else:
                heard = heard._replace(released=event is True)
            if phase == last:
                break
    except EchoError as error:
        facts = tuple(pair for pair in error.facts.items() if pair[0] != "received")
        failure = Failure(type(error), error.phase, str(error), error.detail, facts, " ".join(error.hint.split()[:5]))
        heard = heard._replace(failure=failure)
    return heard


def hear(
    stream: bytes, last: Phase = Phase.echo, *, closes: bool = False, request: echo._Request = fuzz.REQUEST
) -> Heard:
    """What a stream says: whole, byte by byte, with junk behind it and with the end behind it, all the same.

    With `closes`, the stream says nothing without its end.
    """
    single = [bytes([byte]) for byte in stream]
    ways = [[stream, b""], [*single, b""]]
    if not closes:
        ways += [[stream], single, [stream + b"junkjunk"], [stream + GOOD_ECHO, b""]]
    verdicts = {hear_pieces(way, last, request) for way in ways}
    assert len(verdicts) == 1
    return verdicts.pop()


def failure_of(stream: bytes, *, closes: bool = False, request: echo._Request = fuzz.REQUEST) -> Failure:
    """How an echo fails with a stream."""
    failure = hear(stream, closes=closes, request=request).failure
    assert failure
    return failure


def p_datas(*pdvs: Pdv) -> bytes:
    """A PDU for each PDV."""
    return b"".join(rawpeer.p_data([pdv]) for pdv in pdvs)


def answer(**named: object) -> bytes:
    """An accepted association, and a C-ECHO-RSP made of these parts."""
    return GOOD_ACCEPT + rawpeer.command_pdu(rawpeer.echo_rsp_command(**named))  # type: ignore[arg-type]


def context(data: bytes) -> bytes:
    """An acceptance with context 3 refused, and this presentation context item."""
    return rawpeer.pdu(2, rawpeer.associate_ac([(3, 1, None)])[6:] + rawpeer.item(0x21, data))


def due(phase: Phase = Phase.associate) -> echo._Dialogue:
    """A dialogue in which an answer is due."""
    dialogue = echo._Dialogue(fuzz.REQUEST)
    dialogue.associate()
    if phase != Phase.associate:
        dialogue.echo(1)
    if phase == Phase.release:
        dialogue.release()
    return dialogue


def idle(extra: bytes = b"") -> echo._Dialogue:
    """A dialogue between two echoes."""
    dialogue = echo._Dialogue(fuzz.REQUEST)
    dialogue.associate()
    dialogue.receive_data(GOOD_ACCEPT + (extra or GOOD_ECHO))
    assert isinstance(dialogue.next_event(), echo._Accepted)
    dialogue.echo(1)
    assert isinstance(dialogue.next_event(), echo._Answered)
    return dialogue


# --- Events ----------------------------------------------------------------------------------------------------------


def test_a_whole_stream() -> None:
    assert hear(rawpeer.GOOD_STREAM, Phase.release) == Heard(released=True)


def test_there_is_no_event_before_the_last_byte() -> None:
    dialogue = due()
    for byte in GOOD_ACCEPT[:-1]:
        dialogue.receive_data(bytes([byte]))
        assert dialogue.next_event() is None
    dialogue.receive_data(GOOD_ACCEPT[-1:])
    assert dialogue.next_event() == (PEER, [])
    assert dialogue.next_event() is None


def test_every_pdu_is_shown_as_it_came() -> None:
    shown: list[bytes] = []
    dialogue = due()
    dialogue.trace = shown.append
    dialogue.receive_data(GOOD_ACCEPT + GOOD_ECHO + b"xyz123")
    dialogue.next_event()
    dialogue.echo(1)
    dialogue.next_event()
    dialogue.release()
    with pytest.raises(ProtocolError):
        dialogue.next_event()
    assert shown == [GOOD_ACCEPT, GOOD_ECHO, b"xyz123"]


def test_one_dialogue_echoes_again_and_again() -> None:
    dialogue = idle()
    for message_id, status in ((0, 0x0122), (65535, 0), (65535, 0xFF00)):
        dialogue.echo(message_id)
        dialogue.receive_data(rawpeer.echo_rsp(message_id, status))
        assert dialogue.next_event() == (status, [])


@pytest.mark.parametrize(("said", "limit"), [(None, 0), (0, 0), (20, 20), (16384, 16384)])
def test_the_request_keeps_to_the_maximum_length_that_the_peer_states(said: int | None, limit: int) -> None:
    dialogue = due()
    dialogue.receive_data(rawpeer.associate_ac(max_length=said))
    dialogue.next_event()
    assert dialogue.echo(1) == echo._encode_c_echo_rq(1, limit)


def test_nothing_of_an_answer_is_left_over_for_the_next() -> None:
    dialogue = idle()
    dialogue.echo(1)
    dialogue.receive_data(rawpeer.command_pdu(rawpeer.echo_rsp_command(1, omit=[rawpeer.STATUS])))
    with pytest.raises(ProtocolError, match=r"^the C-ECHO-RSP contains no status$"):
        dialogue.next_event()


ANY_PDU = {
    1: rawpeer.pdu(1, GOOD_ACCEPT[6:]), 2: GOOD_ACCEPT, 3: rawpeer.associate_rj(1, 1, 1), 4: GOOD_ECHO,
    5: rawpeer.release_rq(), 6: GOOD_RELEASE, 7: rawpeer.abort(),
}  # fmt: skip
DUE = {Phase.associate: (2, 3, 7), Phase.echo: (4, 5, 7), Phase.release: (4, 5, 6, 7)}
EXPECTED = {
    Phase.associate: "A-ASSOCIATE-AC or A-ASSOCIATE-RJ",
    Phase.echo: "P-DATA-TF with the C-ECHO-RSP",
    Phase.release: "A-RELEASE-RP",
}
NAMES = {
    1: "A-ASSOCIATE-RQ", 2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA-TF", 5: "A-RELEASE-RQ", 6: "A-RELEASE-RP"
}  # fmt: skip


@pytest.mark.parametrize("pdu_type", ANY_PDU)
@pytest.mark.parametrize("phase", DUE)
def test_only_what_is_due_is_let_in(phase: Phase, pdu_type: int) -> None:
    dialogue, why = due(phase), ""
    dialogue.receive_data(ANY_PDU[pdu_type])
    try:
        dialogue.next_event()
    except EchoError as error:
        why = str(error) if isinstance(error, ProtocolError) else ""
    assert why == ("" if pdu_type in DUE[phase] else f"received {NAMES[pdu_type]}, expected {EXPECTED[phase]}")


@pytest.mark.parametrize(
    "release",
    [GOOD_RELEASE, rawpeer.release_rq(), GOOD_ECHO + GOOD_RELEASE, rawpeer.release_rq() + GOOD_RELEASE],
    ids=["release", "both ask at once", "late data", "collision, then the answer"],
)
def test_what_may_cross_our_release_is_no_trouble(release: bytes) -> None:
    assert hear(GOOD_ACCEPT + GOOD_ECHO + release, Phase.release) == Heard(released=True)


@pytest.mark.parametrize(
    ("end", "error", "why"),
    [
        (rawpeer.release_rq(), ConnectionLost, "the peer released the association without an answer"),
        (rawpeer.abort(2, 0), Aborted, "reason not specified"),
        (b"", ConnectionLost, "closed by the peer without an answer"),
        (GOOD_ECHO, ProtocolError, "the answer is to message ID 1, expected no request"),
        (b"HTTP/1.1 408", ProtocolError, "the answer is HTTP, not DICOM"),
    ],
    ids=["A-RELEASE-RQ", "A-ABORT", "closed", "an answer to nothing", "nonsense"],
)
def test_between_two_echoes_any_event_is_the_end(end: bytes, error: type[EchoError], why: str) -> None:
    dialogue = idle()
    assert dialogue.next_event() is None
    dialogue.receive_data(end)
    with pytest.raises(error) as caught:
        dialogue.next_event()
    assert str(caught.value) == why


@pytest.mark.parametrize("phase", [Phase.associate, Phase.echo, Phase.release])
@pytest.mark.parametrize("cut", [1, 5, 6, 9])
def test_the_end_within_a_pdu(cut: int, phase: Phase) -> None:
    dialogue = due(phase)
    dialogue.receive_data(rawpeer.abort()[:cut])
    assert dialogue.next_event() is None
    assert dialogue.is_cut_off()
    dialogue.receive_data(b"")
    with pytest.raises(ConnectionLost, match=r"^the answer was cut off$"):
        dialogue.next_event()


def test_the_end_between_two_fragments() -> None:
    stream = GOOD_ACCEPT + p_datas(*rawpeer.fragments(RSP, 40)[:-1])
    hint = "the peer accepted the association"
    assert failure_of(stream, closes=True) == (ConnectionLost, Phase.echo, "the answer was cut off", "", (), hint)


@pytest.mark.parametrize(("stream", "phase"), [(b"", Phase.associate), (GOOD_ACCEPT, Phase.echo)])
def test_the_end_without_an_answer(stream: bytes, phase: Phase) -> None:
    failure = failure_of(stream, closes=True)
    assert failure[:3] == (ConnectionLost, phase, "closed by the peer without an answer")
    assert not due(phase).is_cut_off()


# --- Answers: what counts is what they say ---------------------------------------------------------------------------

FAILING = rawpeer.echo_rsp_command(1, 0x0122)
PIECES = {
    "two PDVs": rawpeer.p_data(rawpeer.fragments(FAILING, 40)),
    "two PDUs": p_datas(*rawpeer.fragments(FAILING, 40)),
    "a PDV for each byte": rawpeer.p_data(rawpeer.fragments(FAILING, 1)),
    "a PDU for each byte": p_datas(*rawpeer.fragments(FAILING, 1)),
    "an empty fragment first": p_datas(Pdv(1, COMMAND, b"")) + rawpeer.command_pdu(FAILING),
    "an empty fragment last": p_datas(Pdv(1, COMMAND, FAILING), Pdv(1, COMMAND | LAST, b"")),
    "twice": rawpeer.command_pdu(FAILING) * 2,
    "reserved bits in the message control header": rawpeer.p_data([(1, 0xFF, FAILING)]),
}


@pytest.mark.parametrize("answered", PIECES.values(), ids=PIECES)
def test_the_fragments_do_not_matter(answered: bytes) -> None:
    assert hear(GOOD_ACCEPT + answered) == Heard(0x0122)


def with_item(item: bytes) -> bytes:
    return rawpeer.pdu(2, GOOD_ACCEPT[6:] + item)


ACCEPTANCES = {
    "asynchronous operations": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x53, b"\0\1\0\1")),
    "role selection": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x54, b"\0\x111.2.840.10008.1.1\1\0")),
    "broken role selection": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x54, b"\xff\xff")),
    "extended negotiation": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x56, b"\0\x111.2.840.10008.1.1\1")),
    "user identity, unasked": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x59, b"\0\0")),
    "reserved sub-item": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x5F, b"junk")),
    "private sub-item": rawpeer.associate_ac(extra_user_items=rawpeer.item(0xFE, bytes(1000))),
    "empty sub-item": rawpeer.associate_ac(extra_user_items=rawpeer.item(0x00, b"")),
    "unknown item": with_item(rawpeer.item(0x7F, b"junk")),
    "empty proposal": with_item(rawpeer.item(0x20, b"")),
    "empty unknown item": with_item(rawpeer.item(0, b"")),
    "no application context": rawpeer.pdu(2, GOOD_ACCEPT[6:74] + GOOD_ACCEPT[74 + 4 + 21 :]),
    "titles of zeros": rawpeer.associate_ac(called_field=bytes(16), calling_field=bytes(16)),
    "titles of spaces": rawpeer.associate_ac(called_field=b" " * 16, calling_field=b" " * 16),
    "titles that are none": rawpeer.associate_ac(called_field=b"\xff" * 16, calling_field=b"\\\r\n\x1b" * 4),
    "protocol version 3": rawpeer.associate_ac(protocol_version=3),
    "protocol version FFFFH": rawpeer.associate_ac(protocol_version=0xFFFF),
    "refused contexts beside": rawpeer.associate_ac([(3, 3, None), (1, 0, IMPLICIT), (5, 4, None)]),
    "128 kB": with_item(rawpeer.item(0x7F, bytes(0xFFFF)) + rawpeer.item(0x7F, bytes(0xFFF9 + 6 - len(GOOD_ACCEPT)))),
}


@pytest.mark.parametrize("accept", ACCEPTANCES.values(), ids=ACCEPTANCES)
def test_what_is_reserved_or_unknown_in_an_acceptance_is_ignored(accept: bytes) -> None:
    assert hear_pieces([accept + GOOD_ECHO], Phase.echo, fuzz.REQUEST) == Heard()


def test_a_peer_may_say_nothing_of_itself() -> None:
    bare = rawpeer.associate_ac(max_length=None, implementation_class_uid=None, version_name=None)
    without = rawpeer.pdu(2, GOOD_ACCEPT[6:].rpartition(b"\x50\x00")[0])
    for accept in (bare, without):
        assert hear(accept + GOOD_ECHO).peer == echo.Peer(None, None, None, IMPLICIT)


@pytest.mark.parametrize("name", ["NAME 1", "PÄCS", "a\x1b[2Jb\r\nc", "A\\B", "N" * 1000, "", " " * 16, "NAME\0\0"])
@pytest.mark.parametrize("uid", ["1.2.3", "", "1.2.3\0", "1.02.3", "not a UID", "1." * 40 + "1", "1.2\x1b[2J", "ü"])
def test_what_a_peer_calls_itself_decides_nothing(name: str, uid: str) -> None:
    accept = rawpeer.associate_ac([(1, 0, EXPLICIT)], max_length=4096, implementation_class_uid=uid, version_name=name)
    said_uid, said_name = (text.encode().decode("latin-1").strip(" \0") for text in (uid, name))
    said_name = said_name[:256] + "…" * (len(said_name) > 256)
    peer = echo.Peer(said_uid, said_name, 4096, EXPLICIT)
    assert hear_pieces([accept], Phase.associate, fuzz.REQUEST) == Heard(None, (), peer)


@pytest.mark.parametrize(("items", "said"), [(b"", "not stated"), (rawpeer.item(0x59, b"\0\0"), "accepted")])
def test_whether_the_peer_confirms_the_user_identity(items: bytes, said: str) -> None:
    request = echo._Request("pacs", "ANY-SCP", "ECHOSCU", identity=echo.Identity(user="me"))
    heard = hear(rawpeer.associate_ac(extra_user_items=items), Phase.associate, request=request)
    assert heard.peer
    assert heard.peer.user_identity == said


@pytest.mark.parametrize("element", [rawpeer.GROUP_LENGTH, rawpeer.DATA_SET_TYPE])
def test_elements_that_we_do_not_need_may_be_missing(element: int) -> None:
    assert hear(answer(omit=[element])) == Heard()


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_the_group_length_may_be_anything(length: int) -> None:
    assert hear(answer(replace={rawpeer.GROUP_LENGTH: b"1" * length})) == Heard()


def test_unknown_elements_are_ignored() -> None:
    extra = {0x0003: b"1.2.3\0", 0x0110: b"\1\0", 0x0901: b"\0\0\0\0", 0x0FFF: b"??", 0x5010: b""}
    assert hear(answer(replace=extra)) == Heard()


STATUSES = {
    0x0000: "Success", 0x0105: "no such attribute", 0x0106: "invalid attribute value", 0x0107: "attribute list error",
    0x0110: "processing failure", 0x0111: "duplicate SOP instance", 0x0112: "no such SOP instance",
    0x0113: "no such event type", 0x0114: "no such argument", 0x0115: "invalid argument value",
    0x0116: "attribute value out of range", 0x0117: "invalid SOP instance", 0x0118: "no such SOP class",
    0x0119: "class-instance conflict", 0x0120: "missing attribute", 0x0121: "missing attribute value",
    0x0122: "SOP class not supported", 0x0123: "no such action", 0x0124: "not authorized",
    0x0210: "duplicate invocation", 0x0211: "unrecognized operation", 0x0212: "mistyped argument",
    0x0213: "resource limitation", 0xFE00: "cancelled", 0xFF00: "pending", 0xFFFF: "pending",
    **dict.fromkeys((0x0200, 0x01FF, 0xA700, 0xAFFF, 0xC000), "an unnamed failure"),
    **dict.fromkeys((0x0001, 0xB000, 0xBFFF), "an unnamed warning"),
    **dict.fromkeys((0x0002, 0x9999, 0xFE01), "not a status of the standard"),
}  # fmt: skip


@pytest.mark.parametrize(("status", "name"), STATUSES.items())
def test_every_status_is_heard_and_has_a_name_or_a_class(status: int, name: str) -> None:
    """PS3.7 Annex C."""
    assert hear(answer(status=status)) == Heard(status)
    assert echo._status_text(status) == name


# --- What is odd is a note -------------------------------------------------------------------------------------------


def explicit(*omit: int) -> bytes:
    """The C-ECHO-RSP in Explicit VR."""
    vrs = {0x0000: b"UL", 0x0002: b"UI"}
    values = rawpeer.decode_command(RSP)
    return b"".join(
        bytes((0, 0, number & 0xFF, number >> 8)) + vrs.get(number, b"US") + len(value).to_bytes(2, "little") + value
        for number, value in values.items()
        if number not in omit
    )


PADDED = "the peer pads the UID of the transfer syntax, which PS3.8 Annex F does not allow"
ODD_UID = "the Affected SOP Class UID of the answer is not padded as PS3.5 9.1 requires"
IN_EXPLICIT = "the peer encodes the command set in Explicit VR instead of Implicit VR"
VERSION = "the peer states protocol version {}H, without bit 0 (PS3.8 9.3.3)"
SYNTAXES = "the peer accepted with {} transfer syntaxes instead of one"
DATA_SET = "the C-ECHO-RSP announces a data set (command data set type {})"
SOP, BIG_ENDIAN = rawpeer.AFFECTED_SOP_CLASS_UID, "1.2.840.10008.1.2.2"
NOTES = {
    "protocol version 0": (rawpeer.associate_ac(protocol_version=0), VERSION.format("0000"), IMPLICIT),
    "protocol version 2": (rawpeer.associate_ac(protocol_version=2), VERSION.format("0002"), IMPLICIT),
    "two syntaxes": (context(b"\1\0\0\0" + rawpeer.item(0x40, EXPLICIT.encode()) * 2), SYNTAXES.format(2), EXPLICIT),
    "no syntax": (rawpeer.associate_ac([(1, 0, None)]), SYNTAXES.format("no"), None),
    "a syntax not proposed": (
        rawpeer.associate_ac([(1, 0, BIG_ENDIAN)]),
        "the peer accepted with a transfer syntax that was not proposed",
        BIG_ENDIAN,
    ),
    "a syntax padded with a zero": (rawpeer.associate_ac([(1, 0, f"{IMPLICIT}\0")]), PADDED, IMPLICIT),
    "a syntax padded with a space": (rawpeer.associate_ac([(1, 0, f"{EXPLICIT} ")]), PADDED, EXPLICIT),
    "a command set in Explicit VR": (GOOD_ACCEPT + rawpeer.command_pdu(explicit()), IN_EXPLICIT, IMPLICIT),
    "Explicit VR without a group length": (GOOD_ACCEPT + rawpeer.command_pdu(explicit(0)), IN_EXPLICIT, IMPLICIT),
    "a SOP class UID of odd length": (answer(replace={SOP: b"1.2.840.10008.1.1"}), ODD_UID, IMPLICIT),
    "a SOP class UID padded with a space": (answer(replace={SOP: b"1.2.840.10008.1.1 "}), ODD_UID, IMPLICIT),
    "another SOP class": (
        answer(replace={SOP: b"1.2.840.10008.5.1.4.1.1.2\0"}),
        "the C-ECHO-RSP names SOP class 1.2.840.10008.5.1.4.1.1.2, not Verification",
        IMPLICIT,
    ),
    "data set type 0000H": (answer(replace={rawpeer.DATA_SET_TYPE: b"\0\0"}), DATA_SET.format("0000H"), IMPLICIT),
    "data set type 0102H": (answer(replace={rawpeer.DATA_SET_TYPE: b"\2\1"}), DATA_SET.format("0102H"), IMPLICIT),
    "an error comment": (answer(error_comment="no class"), "the peer's error comment: no class", IMPLICIT),
    "a long error comment": (answer(error_comment="x" * 200), f"the peer's error comment: {'x' * 200}", IMPLICIT),
    "a comment of three values": (answer(error_comment="a\\b\\c"), r"the peer's error comment: a\b\c", IMPLICIT),
}


@pytest.mark.parametrize("reading", [config.IGNORE, config.WARN, config.RAISE])
@pytest.mark.parametrize(("stream", "note", "syntax"), NOTES.values(), ids=NOTES)
def test_what_is_odd_but_decides_nothing_is_a_note(
    monkeypatch: pytest.MonkeyPatch, stream: bytes, note: str, syntax: str | None, reading: int
) -> None:
    """However a host has told pydicom to read such values; warnings are errors here anyway."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", reading)
    peer = PEER._replace(transfer_syntax=syntax)
    stream += b"" if stream.startswith(GOOD_ACCEPT) else GOOD_ECHO
    assert hear(stream) == Heard(0, (note,), peer)


def test_an_empty_error_comment_and_sop_class_are_none() -> None:
    assert hear(answer(error_comment=" ", replace={SOP: b""})) == Heard()
    assert hear(answer(omit=[SOP])) == Heard()


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("when", ["at once", "later", "never"])
def test_a_data_set_that_was_announced_does_not_disturb_the_next_echo(when: str, pieces: int) -> None:
    """With --reuse it comes before the next answer."""
    announced = rawpeer.command_pdu(rawpeer.echo_rsp_command(replace={rawpeer.DATA_SET_TYPE: b"\0\0"}))
    data = p_datas(*(Pdv(1, LAST if number == pieces - 1 else 0, b"data") for number in range(pieces)))
    dialogue = idle(announced + (data if when == "at once" else b""))
    assert dialogue.next_event() is None
    dialogue.echo(2)
    dialogue.receive_data((data if when == "later" else b"") + rawpeer.echo_rsp(2))
    assert dialogue.next_event() == (0, [])
    if when != "never":
        dialogue.echo(3)
        dialogue.receive_data(data + rawpeer.echo_rsp(3))
        with pytest.raises(ProtocolError, match=r"^received a data set, expected the command set of the C-ECHO-RSP$"):
            dialogue.next_event()


# --- Refusals --------------------------------------------------------------------------------------------------------

RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
REASONS = {  # PS3.8 Table 9-21
    (1, 1): ("no reason given", "the peer gives no reason;"),
    (1, 2): ("application context name not supported", "the peer may not be"),
    (1, 3): ("calling AE title not recognized", "the peer may not know"),
    (1, 7): ("called AE title not recognized", "check the called AE title"),
    (2, 1): ("no reason given", "the peer gives no reason;"),
    (2, 2): ("protocol version not supported", "the peer may speak an"),
    (3, 1): ("temporary congestion", "the peer has no free"),
    (3, 2): ("local limit exceeded", "the peer has no free"),
}
TRIPLES = [*itertools.product((1, 2, 9), (1, 2, 3, 7), range(1, 11)), (0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(("result", "source", "reason"), TRIPLES)
def test_every_rejection(result: int, source: int, reason: int) -> None:
    meaning, hint = REASONS.get((source, reason), ("reserved reason", "the peer gives no reason;"))
    said = RESULTS.get(result, f"result {result}"), SOURCES.get(source, f"source {source}")
    detail = f"{', '.join(said)}, reason {reason}"
    facts = ("result", result), ("source", source), ("reason", reason)
    failure = Failure(Rejected, Phase.associate, meaning, detail, facts, hint)
    assert hear(rawpeer.associate_rj(result, source, reason)) == Heard(None, peer=None, failure=failure)


def test_a_rejection_without_a_reason_may_be_about_the_identity() -> None:
    request = echo._Request("pacs", "ANY-SCP", "ECHOSCU", identity=echo.Identity(user="me"))
    assert failure_of(rawpeer.associate_rj(1, 1, 1), request=request).hint == "the peer may not accept"


@pytest.mark.parametrize(("reason", "titles"), [(3, ["MY STATION"]), (7, ["MY PACS", "MY STATION"])])
def test_a_hint_about_a_title_names_what_the_peer_may_mean(reason: int, titles: list[str]) -> None:
    """Some peers answer 7 where they do not admit the calling title."""
    told = echo._Echo(echo._Request("MY PACS@pacs", "ANY-SCP", "MY STATION"), 1, 10)
    dialogue = due()
    dialogue.receive_data(rawpeer.associate_rj(1, 1, reason))
    with pytest.raises(Rejected) as caught, told.phase(Phase.associate):
        dialogue.next_event()
    assert all(f'"{title}"' in caught.value.hint for title in titles)
    assert "(-aet)" in caught.value.hint or "with -aet" in caught.value.hint
    assert "this host" in caught.value.hint


ABORT_REASONS = {  # PS3.8 Table 9-26
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
ABORT_HINTS = {Phase.associate: "the peer did not understand", Phase.echo: "the peer accepted the association"}


@pytest.mark.parametrize(("source", "reason"), list(itertools.product((0, 1, 2, 3, 255), (*range(8), 255))))
@pytest.mark.parametrize(("before", "phase"), [(b"", Phase.associate), (GOOD_ACCEPT, Phase.echo)])
def test_every_abort(before: bytes, phase: Phase, source: int, reason: int) -> None:
    meaning, by = ABORT_REASONS.get(reason, "reserved reason"), f"source {source}"
    detail = f"{'service-provider' if source == 2 else by}, reason {reason}"
    if source == 0:  # the service-user gives no reason, whatever the field holds
        meaning, detail = "no reason given", "service-user"
    hint = "some peers abort instead of" if phase == Phase.associate and 0 in (source, reason) else ABORT_HINTS[phase]
    facts = ("source", source), ("reason", reason)
    assert failure_of(before + rawpeer.abort(source, reason)) == (Aborted, phase, meaning, detail, facts, hint)


CONTEXT_RESULTS = {  # PS3.8 Table 9-18
    1: ("user rejection", "the peer accepts the AE"),
    2: ("no reason", "the peer accepts the AE"),
    3: ("abstract syntax not supported", "the peer accepts the AE"),
    4: ("transfer syntaxes not supported", "the peer offers Verification, but"),
    **dict.fromkeys((5, 255), ("reserved result", "the peer accepts the AE")),
}


@pytest.mark.parametrize("result", CONTEXT_RESULTS)
@pytest.mark.parametrize("rest", [b"", rawpeer.item(0x40, b""), rawpeer.item(0x40, b"no UID"), b"\x40\0\xff\xff"])
def test_every_context_result_but_acceptance_whatever_follows_it(result: int, rest: bytes) -> None:
    meaning, hint = CONTEXT_RESULTS[result]
    detail, facts = f"presentation context result {result}", (("result", result),)
    failure = failure_of(context(bytes((1, 0, result, 0)) + rest))
    assert failure == (NotSupported, Phase.associate, meaning, detail, facts, hint)


# --- What is not DICOM -----------------------------------------------------------------------------------------------

NO_DICOM = "this is not a DICOM"
PROTOCOLS = {
    b"HTTP/1.0 400 Bad Request\r\n\r\n": ("HTTP", NO_DICOM),
    b"<html><body>400": ("HTML or XML", NO_DICOM),
    b"SSH-2.0-dropbear\r\n": ("SSH", NO_DICOM),
    b"220 mail.example.org ESMTP\r\n": ("SMTP or FTP", NO_DICOM),
    b"\x15\x03\x01\x00\x02\x02\x46": ("TLS", "the port speaks TLS: try"),
    b"\x16\x03\x03\x00\x31\x02\x00": ("TLS", "the port speaks TLS: try"),
    b"\x0bMSH|^~\\&|HIS": ("HL7 (MLLP)", NO_DICOM),
    b"RFB 003.008\n": ("VNC", NO_DICOM),
}


@pytest.mark.parametrize("greeting", PROTOCOLS)
def test_another_protocol_is_called_by_its_name(greeting: bytes) -> None:
    name, hint = PROTOCOLS[greeting]
    assert failure_of(greeting) == (ProtocolError, Phase.associate, f"the answer is {name}, not DICOM", "", (), hint)


def test_tls_within_tls_is_no_reason_to_try_tls() -> None:
    request = echo._Request("pacs", "ANY-SCP", "ECHOSCU", tls=ssl.create_default_context())
    assert failure_of(b"\x15\x03\x01\0\2\2\x46", request=request).hint == NO_DICOM


NONSENSE = [bytes(6), b"\x08\0\0\0\0\0", b"\xff" * 64, b"HTTQ/1.0", b"\x80\x00\x02\x10", b"xyz", b"\0"]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=bytes.hex)
@pytest.mark.parametrize(("before", "phase"), [(b"", Phase.associate), (GOOD_ACCEPT, Phase.echo)])
def test_what_nobody_knows_is_not_dicom(before: bytes, phase: Phase, nonsense: bytes) -> None:
    failure = failure_of(before + nonsense, closes=len(nonsense) < 6)
    assert failure == (ProtocolError, phase, "the answer is not DICOM", "", (), NO_DICOM)


def test_the_first_bytes_are_a_fact() -> None:
    dialogue = due()
    dialogue.receive_data(b"SSH-2.0-OpenSSH_9.9\r\n")
    with pytest.raises(ProtocolError) as caught:
        dialogue.next_event()
    assert caught.value.facts == {"received": b"SSH-2.0-OpenSSH_".hex()}


# --- What is broken --------------------------------------------------------------------------------------------------


def values(body: bytes) -> bytes:
    return GOOD_ACCEPT + rawpeer.pdu(4, body)


def command(data: bytes) -> bytes:
    return GOOD_ACCEPT + rawpeer.command_pdu(data)


LENGTHS = [  # they count before the bytes are here
    (b"", 3, "A-ASSOCIATE-RJ", (0, 3, 5, 0xFFFFFFFF)),
    (b"", 7, "A-ABORT", (0, 3, 5, 0xFFFFFFFF)),
    (GOOD_ACCEPT, 5, "A-RELEASE-RQ", (2,)),
    (b"", 2, "A-ASSOCIATE-AC", (0x20001, 0x7FFFFFFF, 0xFFFFFFFF)),
    (GOOD_ACCEPT, 4, "P-DATA-TF", (0x20001, 0x7FFFFFFF, 0xFFFFFFFF)),
]
LONGER = "is longer than what contains it"
UNMENTIONED = "the peer accepts, but does not mention presentation context 1"
NUMBERS = {
    rawpeer.COMMAND_FIELD: "Command Field",
    rawpeer.MESSAGE_ID_RESPONDED_TO: "Message ID Being Responded To",
    rawpeer.STATUS: "Status",
    rawpeer.DATA_SET_TYPE: "Command Data Set Type",
}
NO_STATUS = rawpeer.echo_rsp_command(omit=[rawpeer.STATUS])
STATUS = rawpeer.command_element(rawpeer.STATUS, b"\0\0")
BROKEN = [
    *(
        (before + rawpeer.pdu(kind, b"", length), f"{name} with an impossible length of {length} bytes")
        for before, kind, name, lengths in LENGTHS
        for length in lengths
    ),
    *(
        (rawpeer.pdu(2, GOOD_ACCEPT[6:end]), f"malformed A-ASSOCIATE-AC: {end} bytes, at least 74 expected")
        for end in (6, 7, 8, 16, 73)
    ),
    *(
        (stream, f"malformed A-ASSOCIATE-AC: {why}")
        for stream, why in [
            (rawpeer.pdu(2, GOOD_ACCEPT[6:] + b"\x7f"), f"an item of type 7FH {LONGER}"),
            (rawpeer.pdu(2, GOOD_ACCEPT[6:-1]), f"an item of type 50H {LONGER}"),
            (rawpeer.pdu(2, GOOD_ACCEPT[6:].replace(b"\x51\0\0", b"\x51\0\1")), f"an item of type 51H {LONGER}"),
            (context(b"\1\0\0\0\x40\0\0\xff1.2"), f"an item of type 40H {LONGER}"),
            (context(b"\1\0\0"), "a presentation context of 3 bytes"),
            (
                rawpeer.associate_ac(max_length=None, extra_user_items=rawpeer.item(0x51, b"\0\1")),
                "a maximum length of 2 bytes, 4 expected",
            ),
        ]
    ),
    (rawpeer.associate_ac([]), UNMENTIONED),
    (rawpeer.associate_ac([(3, 0, IMPLICIT)]), UNMENTIONED),
    (rawpeer.associate_ac([(1, 3, None), (1, 0, IMPLICIT)]), "presentation context 1 has two results, 3 and 0"),
    (values(b""), "malformed P-DATA-TF: it contains no value"),
    *(
        (values(body), f"malformed P-DATA-TF: a value of {length} bytes where {left} are left")
        for body, length, left in [
            (b"\0", 0, 0),
            (bytes(4), 0, 0),
            (b"\0\0\0\1\1", 1, 1),
            (b"\0\0\0\xff\1\3abc", 255, 5),
            (b"\xff\xff\xff\xff\1\3", 0xFFFFFFFF, 2),
            (bytes((0, 0, 0, len(RSP) + 3, 1, 3)) + RSP, len(RSP) + 3, len(RSP) + 2),  # a whole answer is in it
            (GOOD_ECHO[6:] + b"ab", 24930, 0),  # and here before it
        ]
    ),
    (GOOD_ACCEPT + rawpeer.echo_rsp(1, context_id=3), "the answer is in presentation context 3, not 1"),
    (values(b"\0\0\0\6\1\2data"), "received a data set, expected the command set of the C-ECHO-RSP"),
    (GOOD_ACCEPT + p_datas(Pdv(1, COMMAND, bytes(33000))) * 2, "a command set of more than 65536 bytes"),
    *(
        (command(data), f"malformed command set: {why}")
        for data, why in [
            (b"\0", f"element (0000,0000) {LONGER}"),
            (b"\xff" * 32, f"element (FFFF,FFFF) {LONGER}"),
            (RSP[:-1], f"element (0000,0900) {LONGER}"),
            (explicit()[:-1], f"element (0000,0900) {LONGER}"),
            (RSP + STATUS, "it contains Status twice"),
        ]
    ),
    (command(b""), "received a message without a command field, expected C-ECHO-RSP (8030H)"),
    (command(NO_STATUS), "the C-ECHO-RSP contains no status"),
    (command(NO_STATUS + b"\2" + STATUS[1:]), "the C-ECHO-RSP contains no status"),  # but another group has one
    (answer(omit=[rawpeer.MESSAGE_ID_RESPONDED_TO]), "the C-ECHO-RSP does not say which message it answers"),
    (answer(message_id=2), "the answer is to message ID 2, expected 1"),
    (answer(command_field=0x8020), "received command 8020H, expected C-ECHO-RSP (8030H)"),
    (answer(command_field=0x0030), "received command 0030H, expected C-ECHO-RSP (8030H)"),
    (answer(omit=[rawpeer.COMMAND_FIELD]), "received a message without a command field, expected C-ECHO-RSP (8030H)"),
    *(
        (answer(replace={number: bytes(length)}), f"malformed command set: {name} has {length} bytes, 2 expected")
        for number, name in NUMBERS.items()
        for length in (0, 1, 3, 4)
    ),
]


@pytest.mark.parametrize(("stream", "why"), BROKEN, ids=[why for _, why in BROKEN])
def test_what_is_broken_is_a_protocol_error_that_says_what(stream: bytes, why: str) -> None:
    phase = Phase.echo if stream.startswith(GOOD_ACCEPT) and why[10:24] != "A-ASSOCIATE-AC" else Phase.associate
    assert failure_of(stream) == (ProtocolError, phase, why, "", (), FAULTY)


@pytest.mark.parametrize("cut", range(1, 36))
def test_an_acceptance_whose_items_are_cut_short(cut: int) -> None:
    failure = failure_of(rawpeer.pdu(2, GOOD_ACCEPT[6:-cut]))
    assert failure.error is ProtocolError
    assert failure.message.startswith("malformed A-ASSOCIATE-AC: an item of type ")


# --- Any cut, any bytes ----------------------------------------------------------------------------------------------

COUNT = 2000
calm = settings(max_examples=100, deadline=None)  # the machine may be busy


def cut_up(stream: bytes, places: list[int]) -> list[bytes]:
    """The stream in pieces."""
    ends = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[start:end] for start, end in zip(ends, ends[1:])]


@calm
@given(st.lists(st.integers(0, 400), max_size=20))
@example(list(range(400)))
def test_a_good_stream_means_the_same_in_any_pieces(places: list[int]) -> None:
    assert fuzz.outcome(cut_up(rawpeer.GOOD_STREAM, places)) == ((PEER, []), (0, []), True)


@calm
@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 400), max_size=20))
def test_a_spoilt_stream_means_the_same_in_any_pieces(seed: int, places: list[int]) -> None:
    stream = fuzz.spoilt(seed)
    assert fuzz.outcome(cut_up(stream, places)) == fuzz.outcome([stream])


@calm
@given(st.binary(max_size=200), st.sampled_from([b"", GOOD_ACCEPT, GOOD_ACCEPT + GOOD_ECHO]))
def test_any_bytes_end_in_an_event_or_an_echo_error(data: bytes, before: bytes) -> None:
    fuzz.outcome([before + data])


@calm
@given(st.binary(max_size=200), st.sampled_from(list(ANY_PDU)), st.sampled_from(list(DUE)))
def test_any_body_of_any_pdu_ends_in_an_event_or_an_echo_error(body: bytes, pdu_type: int, phase: Phase) -> None:
    dialogue = due(phase)
    dialogue.receive_data(rawpeer.pdu(pdu_type, body))
    with contextlib.suppress(EchoError):
        dialogue.next_event()


@calm
@given(st.binary(max_size=200))
def test_any_command_set_ends_in_an_event_or_an_echo_error(data: bytes) -> None:
    fuzz.outcome([command(data)])


def test_the_spoilt_streams_are_the_same_each_time_and_many_are_spoilt() -> None:
    streams = [fuzz.spoilt(seed) for seed in range(COUNT)]
    assert streams == [fuzz.spoilt(seed) for seed in range(COUNT)]
    assert len(set(streams)) > COUNT * 0.9
    assert sum(stream in fuzz.GOOD_STREAMS for stream in streams) < COUNT * 0.05


def test_a_spoilt_stream_ends_in_every_kind_of_error_and_in_no_other() -> None:
    ends = {part for seed in range(COUNT) for part in fuzz.outcome([fuzz.spoilt(seed)]) if isinstance(part, type)}
    assert ends == {ProtocolError, ConnectionLost, Rejected, Aborted, NotSupported}


def test_nothing_of_the_process_decides() -> None:
    """Neither asserts, warnings nor pydicom's settings decide, and nothing is printed of it."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PYTHONOPTIMIZE")
    }
    environment["PYTHONPATH"] = str(Path(echo.__file__).parent)
    runs = [
        subprocess.Popen(
            [sys.executable, *options, fuzz.__file__, str(COUNT)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for options in ([], ["-O"], ["-OO"], ["-W", "error"])
    ]  # fmt: skip
    printed = [run.communicate(timeout=60) for run in runs]
    lines = {line for out, _ in printed for line in out.splitlines()}
    assert {err for _, err in printed} == {""}
    assert len(lines) == 1, "another verdict"
    assert lines.pop().startswith(f"{COUNT} streams, 0 surprises, 5 kinds of error, ")
    assert [run.returncode for run in runs] == [0] * 4
