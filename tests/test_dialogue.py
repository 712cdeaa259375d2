"""The dialogue without a socket: bytes in, events out, the same however they are cut and whatever follows them."""

from __future__ import annotations

import itertools
import ssl
import subprocess
import sys
from typing import Any

import fuzz
import pytest
import rawpeer
from command import environment
from fuzz import PEER, RSP, Failure, Heard, p_datas
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import config
from rawpeer import COMMAND, GOOD_ACCEPT, GOOD_ECHO, Pdv, associate_ac, command_pdu, echo_rsp_command, fragments, item
from rawpeer import EXPLICIT_VR_LITTLE_ENDIAN as EXPLICIT
from rawpeer import IMPLICIT_VR_LITTLE_ENDIAN as IMPLICIT

import dicom_echo as echo
from dicom_echo import Aborted, ConnectionLost, EchoError, NotSupported, Phase, ProtocolError, Rejected


def hear(stream: bytes, *, closes: bool = False, **options: Any) -> Heard:
    """What a stream says: the same whole, byte by byte, followed by junk, and followed by the end.

    With `closes`, the stream says nothing without its end. `options` are of the request.
    """
    request = echo._Request("pacs", "ANY-SCP", "ECHOSCU", **options)
    single = [bytes([byte]) for byte in stream]
    ways = [[stream, b""], [*single, b""]]
    if not closes:
        ways += [[stream], single, [stream + b"junkjunk"], [stream + GOOD_ECHO, b""]]
    verdicts = {fuzz.hear(way, Phase.echo, request) for way in ways}
    assert len(verdicts) == 1
    return verdicts.pop()


def command(data: bytes) -> bytes:
    """An accepted association, and this command set."""
    return GOOD_ACCEPT + command_pdu(data)


def answer(**parts: Any) -> bytes:
    """An accepted association, and a C-ECHO-RSP made of these parts."""
    return command(echo_rsp_command(**parts))


def replacing(element: int, value: bytes) -> bytes:
    """An accepted association, and a C-ECHO-RSP with this value of an element."""
    return answer(replace={element: value})


def with_item(extra: bytes, accept: bytes = GOOD_ACCEPT) -> bytes:
    """An acceptance with one more item."""
    return rawpeer.pdu(2, accept[6:] + extra)


def context(data: bytes) -> bytes:
    """An acceptance with context 3 refused, and this presentation context item."""
    return with_item(item(0x21, data), associate_ac([(3, 1, None)]))


def due(phase: Phase = Phase.associate) -> echo._Dialogue:
    """A dialogue in which an answer is due."""
    dialogue = echo._Dialogue(fuzz.REQUEST)
    dialogue.associate()
    if phase != Phase.associate:
        dialogue.echo(1)
    if phase == Phase.release:
        dialogue.release()
    return dialogue


def idle(answered: bytes = GOOD_ECHO) -> echo._Dialogue:
    """A dialogue between two echoes."""
    dialogue = due()
    dialogue.receive_data(GOOD_ACCEPT + answered)
    assert dialogue.next_event()
    dialogue.echo(1)
    assert dialogue.next_event()
    return dialogue


def error_of(dialogue: echo._Dialogue, data: bytes) -> tuple[type[EchoError], str] | None:
    """How a dialogue ends with this data."""
    dialogue.receive_data(data)
    try:
        dialogue.next_event()
    except EchoError as error:
        return type(error), str(error)
    return None


# --- Events ----------------------------------------------------------------------------------------------------------


def test_one_dialogue_echoes_again_and_again() -> None:
    dialogue = idle()
    for message_id, status in ((0, 0x0122), (65535, 0), (65535, 0xFF00)):
        dialogue.echo(message_id)
        dialogue.receive_data(rawpeer.echo_rsp(message_id, status))
        assert dialogue.next_event() == echo._Event(status=status, notes=[])
    dialogue.echo(1)  # nothing of an answer is left over for the next
    assert error_of(dialogue, command_pdu(WITHOUT_STATUS)) == (ProtocolError, NO_STATUS)


def test_the_request_keeps_to_the_maximum_length_that_the_peer_states() -> None:
    for said, limit in {None: 0, 0: 0, 20: 20, 16384: 16384}.items():
        dialogue = due()
        dialogue.receive_data(associate_ac(max_length=said))
        dialogue.next_event()
        assert dialogue.echo(1) == echo._encode_c_echo(1, limit)


ANY_PDU = {
    "A-ASSOCIATE-RQ": rawpeer.pdu(1, GOOD_ACCEPT[6:]), "A-ASSOCIATE-AC": GOOD_ACCEPT,
    "A-ASSOCIATE-RJ": rawpeer.associate_rj(1, 1, 1), "P-DATA-TF": GOOD_ECHO, "A-RELEASE-RQ": rawpeer.release_rq(),
    "A-RELEASE-RP": rawpeer.release_rp(), "A-ABORT": rawpeer.abort(),
}  # fmt: skip
# What is let in, and what is named as expected when something else comes.
DUE = {
    Phase.associate: ({"A-ASSOCIATE-AC", "A-ASSOCIATE-RJ", "A-ABORT"}, "A-ASSOCIATE-AC or A-ASSOCIATE-RJ"),
    Phase.echo: ({"P-DATA-TF", "A-RELEASE-RQ", "A-ABORT"}, "P-DATA-TF with the C-ECHO-RSP"),
    Phase.release: ({"P-DATA-TF", "A-RELEASE-RQ", "A-RELEASE-RP", "A-ABORT"}, "A-RELEASE-RP"),
}


def test_only_what_is_due_is_let_in() -> None:
    for phase, (let_in, expected) in DUE.items():
        errors = {name: error_of(due(phase), pdu) for name, pdu in ANY_PDU.items()}
        refused = {name: error for name, error in errors.items() if error and error[0] == ProtocolError}
        assert refused == {
            name: (ProtocolError, f"received {name}, expected {expected}") for name in ANY_PDU if name not in let_in
        }


# What comes, and the error that it is.
BETWEEN: dict[bytes, tuple[type[EchoError], str] | None] = {
    rawpeer.release_rq(): (ConnectionLost, "the peer released the association without an answer"),
    rawpeer.abort(2, 0): (Aborted, "reason not specified"),
    b"": (ConnectionLost, "closed by the peer without an answer"),
    GOOD_ECHO: (ProtocolError, "the answer is to message ID 1, expected no request"),
    b"HTTP/1.1 408": (ProtocolError, "the answer is HTTP, not DICOM"),
}


def test_between_two_echoes_any_event_is_the_end() -> None:
    assert idle().next_event() is None
    assert {end: error_of(idle(), end) for end in BETWEEN} == BETWEEN


def test_the_end_within_an_answer() -> None:
    for phase, cut in itertools.product(DUE, (1, 5, 6, 9)):
        dialogue = due(phase)
        assert not dialogue.is_cut_off()
        assert error_of(dialogue, rawpeer.abort()[:cut]) is None
        assert dialogue.is_cut_off()
        assert error_of(dialogue, b"") == (ConnectionLost, "the answer was cut off")
    between_two_fragments = GOOD_ACCEPT + p_datas(fragments(RSP, 40)[:-1])
    hint = "the peer accepted the association"
    failure = Failure(ConnectionLost, Phase.echo, "the answer was cut off", hint=hint)
    assert hear(between_two_fragments, closes=True).failure == failure


# --- Answers: what counts is what they say ---------------------------------------------------------------------------

FAILING = echo_rsp_command(1, 0x0122)
PIECES = {
    "two PDVs": rawpeer.p_data(fragments(FAILING, 40)),
    "two PDUs": p_datas(fragments(FAILING, 40)),
    "a PDV for each byte": rawpeer.p_data(fragments(FAILING, 1)),
    "a PDU for each byte": p_datas(fragments(FAILING, 1)),
    "an empty fragment first": p_datas([Pdv(1, COMMAND, b"")]) + command_pdu(FAILING),
    "an empty fragment last": p_datas([Pdv(1, COMMAND, FAILING), Pdv(1, COMMAND | rawpeer.LAST, b"")]),
    "twice": command_pdu(FAILING) * 2,
    "reserved bits in the message control header": rawpeer.p_data([(1, 0xFF, FAILING)]),
}


def test_the_fragments_do_not_matter() -> None:
    heard = {name: hear(GOOD_ACCEPT + answered) for name, answered in PIECES.items()}
    assert heard == dict.fromkeys(PIECES, Heard(0x0122))


ACCEPTANCES = {
    **{
        f"sub-item {kind:02X}H": associate_ac(extra_user_items=item(kind, data))
        for kind, data in {
            0x53: b"\0\1\0\1",  # asynchronous operations
            0x54: b"\xff\xff",  # role selection, broken
            0x56: b"\0\x111.2.840.10008.1.1\1",  # extended negotiation
            0x59: b"\0\0",  # a response to a user identity, unasked
            0x5F: b"junk",
            0xFE: bytes(1000),
            0x00: b"",
        }.items()
    },
    "unknown item": with_item(item(0x7F, b"junk")),
    "empty proposal": with_item(item(0x20, b"")),
    "empty unknown item": with_item(item(0, b"")),
    "no application context": rawpeer.pdu(2, GOOD_ACCEPT[6:74] + GOOD_ACCEPT[74 + 4 + 21 :]),
    "titles of zeros": associate_ac(called_field=bytes(16), calling_field=bytes(16)),
    "titles that are none": associate_ac(called_field=b"\xff" * 16, calling_field=b"\\\r\n\x1b" * 4),
    "protocol version 3": associate_ac(protocol_version=3),
    "protocol version FFFFH": associate_ac(protocol_version=0xFFFF),
    "refused contexts beside": associate_ac([(3, 3, None), (1, 0, IMPLICIT), (5, 4, None)]),
    "128 kB": with_item(item(0x7F, bytes(0xFFFF)) + item(0x7F, bytes(0xFFF9 + 6 - len(GOOD_ACCEPT)))),
}
ANSWERS = {
    **{f"no element {each:04X}H": answer(omit=[each]) for each in (
        rawpeer.GROUP_LENGTH, rawpeer.DATA_SET_TYPE, rawpeer.AFFECTED_SOP_CLASS_UID)},
    "an empty error comment and SOP class": answer(error_comment=" ", replace={rawpeer.AFFECTED_SOP_CLASS_UID: b""}),
    **{f"a group length of {n} bytes": replacing(rawpeer.GROUP_LENGTH, b"1" * n) for n in (0, 1, 3, 5)},
    "unknown elements": answer(
        replace={0x0003: b"1.2.3\0", 0x0110: b"\1\0", 0x0901: b"\0\0\0\0", 0x0FFF: b"??", 0x5010: b""}
    ),
}  # fmt: skip


def test_what_is_reserved_unknown_or_not_needed_is_ignored() -> None:
    heard = {name: fuzz.hear([accept + GOOD_ECHO], Phase.echo) for name, accept in ACCEPTANCES.items()}
    heard.update({name: hear(answered) for name, answered in ANSWERS.items()})
    assert heard == dict.fromkeys((*ACCEPTANCES, *ANSWERS), Heard())


def test_a_peer_may_say_nothing_of_itself() -> None:
    bare = associate_ac(max_length=None, implementation_class_uid=None, version_name=None)
    without = rawpeer.pdu(2, GOOD_ACCEPT[6:].rpartition(b"\x50\x00")[0])
    for accept in (bare, without):
        assert hear(accept + GOOD_ECHO).peer == echo.Peer(None, None, None, IMPLICIT)


def test_what_a_peer_calls_itself_decides_nothing() -> None:
    names = "NAME 1", "PÄCS", "a\x1b[2Jb\r\nc", "A\\B", "N" * 1000, "", " " * 16, "NAME\0\0"
    uids = "1.2.3", "", "1.2.3\0", "1.02.3", "not a UID", "1." * 40 + "1", "1.2\x1b[2J", "ü"
    for uid, name in itertools.product(uids, names):
        accept = associate_ac([(1, 0, EXPLICIT)], max_length=4096, implementation_class_uid=uid, version_name=name)
        said_uid, said_name = (text.encode().decode("latin-1").strip(" \0") for text in (uid, name))
        said_name = said_name[:256] + "…" * (len(said_name) > 256)
        peer = echo.Peer(said_uid, said_name, 4096, EXPLICIT)
        assert fuzz.hear([accept], Phase.associate) == Heard(None, (), peer)


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


def test_every_status_is_heard_and_has_a_name_or_a_class() -> None:
    """PS3.7 Annex C."""
    assert {status: echo._status_text(status) for status in STATUSES} == STATUSES
    assert {status: hear(answer(status=status)) for status in STATUSES} == {
        status: Heard(status) for status in STATUSES
    }


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
COMMENT = "the peer's error comment: "
NOT_PROPOSED = "the peer accepted with a transfer syntax that was not proposed"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
# An acceptance; the note, and the transfer syntax that is reported.
ODD_ACCEPTANCES: dict[bytes, tuple[str, str | None]] = {
    associate_ac(protocol_version=0): (VERSION.format("0000"), IMPLICIT),
    associate_ac(protocol_version=2): (VERSION.format("0002"), IMPLICIT),
    context(b"\1\0\0\0" + item(0x40, EXPLICIT.encode()) * 2): (SYNTAXES.format(2), EXPLICIT),
    associate_ac([(1, 0, None)]): (SYNTAXES.format("no"), None),
    associate_ac([(1, 0, BIG_ENDIAN)]): (NOT_PROPOSED, BIG_ENDIAN),
    associate_ac([(1, 0, f"{IMPLICIT}\0")]): (PADDED, IMPLICIT),
    associate_ac([(1, 0, f"{EXPLICIT} ")]): (PADDED, EXPLICIT),
}
ODD_ANSWERS = {
    command(explicit()): IN_EXPLICIT,
    command(explicit(rawpeer.GROUP_LENGTH)): IN_EXPLICIT,
    replacing(rawpeer.AFFECTED_SOP_CLASS_UID, b"1.2.840.10008.1.1"): ODD_UID,
    replacing(rawpeer.AFFECTED_SOP_CLASS_UID, b"1.2.840.10008.1.1 "): ODD_UID,
    replacing(rawpeer.AFFECTED_SOP_CLASS_UID, b"1.2.3\0"): "the C-ECHO-RSP names SOP class 1.2.3, not Verification",
    replacing(rawpeer.DATA_SET_TYPE, b"\0\0"): DATA_SET.format("0000H"),
    replacing(rawpeer.DATA_SET_TYPE, b"\2\1"): DATA_SET.format("0102H"),
    answer(error_comment="no class"): f"{COMMENT}no class",
    answer(error_comment="x" * 200): f"{COMMENT}{'x' * 200}",
    answer(error_comment="a\\b\\c"): rf"{COMMENT}a\b\c",
}


def test_what_is_odd_but_decides_nothing_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a host has told pydicom to read such values; warnings are errors here anyway."""
    notes = {accept + GOOD_ECHO: odd for accept, odd in ODD_ACCEPTANCES.items()}
    notes.update({answered: (note, IMPLICIT) for answered, note in ODD_ANSWERS.items()})
    heard = {each: Heard(0, (note,), PEER._replace(transfer_syntax=syntax)) for each, (note, syntax) in notes.items()}
    for reading in (config.IGNORE, config.WARN, config.RAISE):
        monkeypatch.setattr(config.settings, "reading_validation_mode", reading)
        assert {each: hear(each) for each in heard} == heard


def test_a_data_set_that_was_announced_does_not_disturb_the_next_echo() -> None:
    """With --reuse it comes before the next answer."""
    announced = command_pdu(echo_rsp_command(replace={rawpeer.DATA_SET_TYPE: b"\0\0"}))
    last = Pdv(1, rawpeer.LAST, b"data")
    data_sets = p_datas([last]), p_datas([Pdv(1, 0, b"data"), Pdv(1, 0, b"data"), last])
    for data, when in itertools.product(data_sets, ("at once", "later", "never")):
        dialogue = idle(announced + (data if when == "at once" else b""))
        assert dialogue.next_event() is None
        dialogue.echo(2)
        dialogue.receive_data((data if when == "later" else b"") + rawpeer.echo_rsp(2))
        assert dialogue.next_event() == echo._Event(status=0, notes=[])
        if when != "never":
            dialogue.echo(3)
            assert error_of(dialogue, data + rawpeer.echo_rsp(3)) == (ProtocolError, NO_DATA_SET)


# --- Refusals --------------------------------------------------------------------------------------------------------

RESULTS = {1: "rejected-permanent", 2: "rejected-transient"}
SOURCES = {1: "service-user", 2: "service-provider (ACSE)", 3: "service-provider (presentation)"}
REASONS = {  # PS3.8 Table 9-21: the source and the reason; the text and the beginning of the hint
    (1, 1): ("no reason given", "often the peer does not"),
    (1, 2): ("application context name not supported", "the peer may not be"),
    (1, 3): ("calling AE title not recognized", "the peer may not know"),
    (1, 7): ("called AE title not recognized", "check the called AE title"),
    (2, 1): ("no reason given", "often the peer does not"),
    (2, 2): ("protocol version not supported", "the peer may not be"),
    (3, 1): ("temporary congestion", "the peer has no free"),
    (3, 2): ("local limit exceeded", "the peer has no free"),
}


def test_every_rejection() -> None:
    triples = [*itertools.product((1, 2, 9), (1, 2, 3, 7), range(1, 11)), (0, 0, 0), (255, 255, 255)]
    for result, source, reason in triples:
        meaning, hint = REASONS.get((source, reason), ("reserved reason", "often the peer does not"))
        said = RESULTS.get(result, f"result {result}"), SOURCES.get(source, f"source {source}")
        detail = f"{', '.join(said)}, reason {reason}"
        facts = ("result", result), ("source", source), ("reason", reason)
        failure = Failure(Rejected, Phase.associate, meaning, detail, facts, hint)
        assert hear(rawpeer.associate_rj(result, source, reason)) == Heard(None, peer=None, failure=failure)


ABORT_REASONS = {  # PS3.8 Table 9-26
    0: "reason not specified", 1: "unrecognized PDU", 2: "unexpected PDU", 4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter", 6: "invalid PDU parameter value",
}  # fmt: skip
BEGINNINGS = {Phase.associate: b"", Phase.echo: GOOD_ACCEPT}


def test_every_abort() -> None:
    for (phase, before), source, reason in itertools.product(BEGINNINGS.items(), (0, 1, 2, 3, 255), (*range(8), 255)):
        meaning, by = ABORT_REASONS.get(reason, "reserved reason"), f"source {source}"
        detail = f"{'service-provider' if source == 2 else by}, reason {reason}"
        if source == 0:  # the service-user gives no reason, whatever the field holds
            meaning, detail = "no reason given", "service-user"
        unsaid = phase == Phase.associate and 0 in (source, reason)
        hint = "some peers abort instead of" if unsaid else "the peer did not understand"
        facts = ("source", source), ("reason", reason)
        assert hear(before + rawpeer.abort(source, reason)).failure == (Aborted, phase, meaning, detail, facts, hint)


CONTEXT_RESULTS = {  # PS3.8 Table 9-18: the text, and the beginning of the hint
    1: ("user rejection", "the peer accepts the AE"),
    2: ("no reason", "the peer accepts the AE"),
    3: ("abstract syntax not supported", "the peer accepts the AE"),
    4: ("transfer syntaxes not supported", "the peer wants another one:"),
    **dict.fromkeys((5, 255), ("reserved result", "the peer accepts the AE")),
}


def test_every_context_result_but_acceptance_whatever_follows_it() -> None:
    for result, (meaning, hint) in CONTEXT_RESULTS.items():
        detail, facts = f"presentation context result {result}", (("result", result),)
        for rest in (b"", item(0x40, b""), item(0x40, b"no UID"), b"\x40\0\xff\xff"):
            failure = hear(context(bytes((1, 0, result, 0)) + rest)).failure
            assert failure == (NotSupported, Phase.associate, meaning, detail, facts, hint)


# --- What is not DICOM -----------------------------------------------------------------------------------------------

NO_DICOM, TRY_TLS = "this is not a DICOM", "the port speaks TLS: try"
PROTOCOLS = {
    b"HTTP/1.0 400 Bad Request\r\n\r\n": "HTTP",
    b"<html><body>400": "HTML or XML",
    b"SSH-2.0-dropbear\r\n": "SSH",
    b"220 mail.example.org ESMTP\r\n": "SMTP or FTP",
    b"\x15\x03\x01\x00\x02\x02\x46": "TLS",
    b"\x16\x03\x03\x00\x31\x02\x00": "TLS",
    b"\x0bMSH|^~\\&|HIS": "HL7 (MLLP)",
    b"RFB 003.008\n": "VNC",
}


def test_another_protocol_is_called_by_its_name() -> None:
    for (greeting, name), tls in itertools.product(PROTOCOLS.items(), (None, ssl.create_default_context())):
        hint = TRY_TLS if name == "TLS" and not tls else NO_DICOM  # TLS within TLS is no reason to try TLS
        failure = Failure(ProtocolError, Phase.associate, f"the answer is {name}, not DICOM", hint=hint)
        assert hear(greeting, tls=tls).failure == failure


def test_what_nobody_knows_is_not_dicom() -> None:
    for phase, before in BEGINNINGS.items():
        for nonsense in (bytes(6), b"\x08\0\0\0\0\0", b"\xff" * 64, b"HTTQ/1.0", b"\x80\x00\x02\x10", b"xyz", b"\0"):
            failure = hear(before + nonsense, closes=len(nonsense) < 6).failure
            assert failure == (ProtocolError, phase, "the answer is not DICOM", "", (), NO_DICOM)


# --- What is broken --------------------------------------------------------------------------------------------------


def values(body: bytes) -> bytes:
    return GOOD_ACCEPT + rawpeer.pdu(4, body)


IMPOSSIBLE = {  # such lengths are refused before the bytes have come
    before + rawpeer.pdu(kind, b"", length): f"{name} with an impossible length of {length} bytes"
    for before, kind, name, lengths in [
        (b"", 3, "A-ASSOCIATE-RJ", (0, 3, 5, 0xFFFFFFFF)),
        (b"", 7, "A-ABORT", (0, 3, 5, 0xFFFFFFFF)),
        (GOOD_ACCEPT, 5, "A-RELEASE-RQ", (2,)),
        (b"", 2, "A-ASSOCIATE-AC", (0x20001, 0x7FFFFFFF, 0xFFFFFFFF)),
        (GOOD_ACCEPT, 4, "P-DATA-TF", (0x20001, 0x7FFFFFFF, 0xFFFFFFFF)),
    ]
    for length in lengths
}
LONGER = "is longer than what contains it"
AC, BODY = "malformed A-ASSOCIATE-AC:", GOOD_ACCEPT[6:]
UNMENTIONED = "the peer accepts, but does not mention presentation context 1"
ACCEPTANCES_WRONG = {
    **{rawpeer.pdu(2, BODY[: end - 6]): f"{AC} {end} bytes, at least 74 expected" for end in (6, 7, 8, 16, 73)},
    **{rawpeer.pdu(2, BODY[:-cut]): f"{AC} an item of type 50H {LONGER}" for cut in range(1, 36)},
    with_item(b"\x7f"): f"{AC} an item of type 7FH {LONGER}",
    rawpeer.pdu(2, BODY.replace(b"\x51\0\0", b"\x51\0\1")): f"{AC} an item of type 51H {LONGER}",
    context(b"\1\0\0\0\x40\0\0\xff1.2"): f"{AC} an item of type 40H {LONGER}",
    context(b"\1\0\0"): f"{AC} a presentation context of 3 bytes",
    associate_ac(max_length=None, extra_user_items=item(0x51, b"\0\1")): (
        f"{AC} a maximum length of 2 bytes, 4 expected"
    ),
    associate_ac([]): UNMENTIONED,
    associate_ac([(3, 0, IMPLICIT)]): UNMENTIONED,
    associate_ac([(1, 3, None), (1, 0, IMPLICIT)]): "presentation context 1 has two results, 3 and 0",
}
NO_DATA_SET = "received a data set, expected the command set of the C-ECHO-RSP"
TOO_LONG = GOOD_ACCEPT + p_datas([Pdv(1, COMMAND, bytes(33000))]) * 2
VALUES_WRONG = {
    **{
        values(body): f"malformed P-DATA-TF: a value of {length} bytes where {left} are left"
        for body, length, left in [
            (b"\0", 0, 0),
            (bytes(4), 0, 0),
            (b"\0\0\0\1\1", 1, 1),
            (b"\0\0\0\xff\1\3abc", 255, 5),
            (b"\xff\xff\xff\xff\1\3", 0xFFFFFFFF, 2),
            (bytes((0, 0, 0, len(RSP) + 3, 1, 3)) + RSP, len(RSP) + 3, len(RSP) + 2),  # a whole answer is in it
            (GOOD_ECHO[6:] + b"ab", 24930, 0),  # and here before it
        ]
    },
    values(b""): "malformed P-DATA-TF: it contains no value",
    GOOD_ACCEPT + rawpeer.echo_rsp(1, context_id=3): "the answer is in presentation context 3, not 1",
    values(b"\0\0\0\6\1\2data"): NO_DATA_SET,
    TOO_LONG: "a command set of more than 65536 bytes",
}
MALFORMED, EXPECTED_RSP = "malformed command set:", "expected C-ECHO-RSP (8030H)"
NO_STATUS = "the C-ECHO-RSP contains no status"
NO_COMMAND = f"received a message without a command field, {EXPECTED_RSP}"
STATUS, WITHOUT_STATUS = rawpeer.command_element(rawpeer.STATUS, b"\0\0"), echo_rsp_command(omit=[rawpeer.STATUS])
NUMBERS = {
    rawpeer.COMMAND_FIELD: "Command Field", rawpeer.MESSAGE_ID_RESPONDED_TO: "Message ID Being Responded To",
    rawpeer.STATUS: "Status", rawpeer.DATA_SET_TYPE: "Command Data Set Type",
}  # fmt: skip
COMMANDS_WRONG = {
    command(b"\0"): f"{MALFORMED} element (0000,0000) {LONGER}",
    command(b"\xff" * 32): f"{MALFORMED} element (FFFF,FFFF) {LONGER}",
    command(RSP[:-1]): f"{MALFORMED} element (0000,0900) {LONGER}",
    command(explicit()[:-1]): f"{MALFORMED} element (0000,0900) {LONGER}",
    command(RSP + STATUS): f"{MALFORMED} it contains Status twice",
    **{
        replacing(number, bytes(length)): f"{MALFORMED} {name} has {length} bytes, 2 expected"
        for number, name in NUMBERS.items()
        for length in (0, 1, 3, 4)
    },
    command(b""): NO_COMMAND,
    answer(omit=[rawpeer.COMMAND_FIELD]): NO_COMMAND,
    answer(command_field=0x8020): f"received command 8020H, {EXPECTED_RSP}",
    answer(command_field=0x0030): f"received command 0030H, {EXPECTED_RSP}",
    command(WITHOUT_STATUS): NO_STATUS,
    command(WITHOUT_STATUS + b"\2" + STATUS[1:]): NO_STATUS,  # but another group has one
    answer(omit=[rawpeer.MESSAGE_ID_RESPONDED_TO]): "the C-ECHO-RSP does not say which message it answers",
    answer(message_id=2): "the answer is to message ID 2, expected 1",
}
BROKEN = {**IMPOSSIBLE, **ACCEPTANCES_WRONG, **VALUES_WRONG, **COMMANDS_WRONG}


def test_what_is_broken_is_a_protocol_error_that_says_what() -> None:
    failures = {}
    for stream, why in BROKEN.items():
        phase = Phase.echo if stream.startswith(GOOD_ACCEPT) and AC not in why else Phase.associate
        failures[stream] = Failure(ProtocolError, phase, why, hint="the peer's DICOM is faulty,")
    assert {stream: hear(stream).failure for stream in BROKEN} == failures


def test_the_same_is_told_of_what_comes_over_a_socket() -> None:
    """And we abort what the peer has not ended."""
    streams = [*BROKEN, *PROTOCOLS, rawpeer.associate_rj(1, 1, 7), rawpeer.abort(0, 0), context(b"\1\0\3\0")]
    streams.remove(TOO_LONG)  # what we do not read resets the connection, which may overtake our A-ABORT
    cuts = [len(GOOD_ACCEPT) if stream.startswith(GOOD_ACCEPT) else len(stream) for stream in streams]
    scripts = [rawpeer.script(accept=stream[:cut], echo=stream[cut:]) for stream, cut in zip(streams, cuts)]
    with rawpeer.RawPeer(*scripts) as peer:
        for number, stream in enumerate(streams):
            error = echo.probe(peer.address, message_id=1).error
            assert error
            assert Failure.of(error) == hear(stream).failure
            aborted = peer.conversation(number).types[-1] == rawpeer.A_ABORT
            assert aborted == isinstance(error, (ProtocolError, NotSupported))


# --- Any cut, any bytes ----------------------------------------------------------------------------------------------

COUNT = 2000  # of spoilt streams
calm = settings(max_examples=100, deadline=None)  # the machine may be busy


@calm
@given(st.none() | st.integers(0, 1 << 32), st.lists(st.integers(0, 400), max_size=20))
@example(None, list(range(400)))
def test_a_stream_good_or_spoilt_means_the_same_in_any_pieces(seed: int | None, places: list[int]) -> None:
    stream = rawpeer.GOOD_STREAM if seed is None else fuzz.spoilt(seed)
    ends = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    heard = fuzz.hear([*(stream[start:end] for start, end in zip(ends, ends[1:])), b""])
    assert heard == (Heard(released=True) if seed is None else fuzz.hear([stream, b""]))


@calm
@given(st.binary(max_size=200), st.sampled_from([b"", GOOD_ACCEPT, GOOD_ACCEPT + GOOD_ECHO]))
def test_any_bytes_end_in_an_event_or_an_echo_error(data: bytes, before: bytes) -> None:
    fuzz.hear([before + data, b""])
    fuzz.hear([command(data), b""])


@calm
@given(st.binary(max_size=200), st.integers(1, 7), st.sampled_from(list(DUE)))
def test_any_body_of_any_pdu_ends_in_an_event_or_an_echo_error(body: bytes, pdu_type: int, phase: Phase) -> None:
    error_of(due(phase), rawpeer.pdu(pdu_type, body))


def test_nothing_of_the_process_decides_about_spoilt_streams() -> None:
    """Neither asserts, warnings nor pydicom's settings do, and nothing is printed of it."""
    runs = [
        subprocess.Popen(
            [sys.executable, *options, fuzz.__file__, str(COUNT)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for options in ([], ["-O"], ["-OO", "-W", "error"])
    ]  # fmt: skip
    printed = [run.communicate(timeout=60) for run in runs]
    lines = {line for out, _ in printed for line in out.splitlines()}
    assert ({err for _, err in printed}, {run.returncode for run in runs}) == ({""}, {0})
    assert len(lines) == 1, "another verdict"
    assert lines.pop().startswith(f"{COUNT} streams, 0 surprises, 5 kinds of error, ")
