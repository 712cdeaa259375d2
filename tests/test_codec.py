"""The codec: requests as pynetdicom and rawpeer read them, and answers read as pynetdicom reads them."""

from __future__ import annotations

import contextlib
import importlib.machinery
import logging
import zipfile
from importlib import metadata

import fuzz
import pytest
import rawpeer
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RQ, C_ECHO_RSP
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import UserIdentityNegotiation

import dicom_echo as echo
from dicom_echo import Identity

IMPLICIT, EXPLICIT = rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN
JPEG = "1.2.840.10008.1.2.4.50"
SYNTAXES = {
    "implicit": IMPLICIT, "explicit": EXPLICIT, "deflated": "1.2.840.10008.1.2.1.99",
    "big-endian": "1.2.840.10008.1.2.2", JPEG: JPEG,
}  # fmt: skip
calm = settings(max_examples=60, deadline=None)  # the machine may be busy


def requested(
    address: str = "pacs", called: str = "ANY-SCP", calling: str = "ECHOSCU", **options: object
) -> tuple[bytes, rawpeer.AssociateRequest]:
    """The A-ASSOCIATE-RQ of these parameters, as bytes and read by hand."""
    request = echo._Request(address, called, calling, **options)  # type: ignore[arg-type]
    ((pdu_type, body),), rest = rawpeer.split_pdus(pdu := echo._Dialogue(request).associate())
    assert (pdu_type, rest) == (rawpeer.A_ASSOCIATE_RQ, b"")
    return pdu, rawpeer.decode_associate_rq(body)


# --- A-ASSOCIATE-RQ (PS3.8 9.3.2) ------------------------------------------------------------------------------------


def test_the_request_proposes_verification_once_and_says_who_we_are() -> None:
    _, request = requested()
    assert (request.protocol_version, request.application_context) == (1, "1.2.840.10008.3.1.1.1")
    assert request.contexts == (rawpeer.ProposedContext(1, "1.2.840.10008.1.1", (IMPLICIT, EXPLICIT)),)
    assert set(request.user_items) == {0x51, 0x52, 0x55}
    assert request.user_items[0x52].startswith(b"2.25.")
    assert request.user_items[0x55].startswith(b"DICOM_ECHO_")
    assert (len(request.user_items[0x52]) <= 64, len(request.user_items[0x55]) <= 16) == (True, True)
    assert request.max_length == 16382


@pytest.mark.parametrize(
    ("titles", "called", "calling"),
    [
        ([], b"ANY-SCP         ", b"ECHOSCU         "),
        (["pacs", "X", "Y"], b"X               ", b"Y               "),
        (["pacs", "SIXTEEN-LETTERS!", "A B@C:D"], b"SIXTEEN-LETTERS!", b"A B@C:D         "),
        (["pacs", "  padded  ", " p "], b"padded          ", b"p               "),
    ],
)
def test_the_titles_are_padded_to_16_bytes(titles: list[str], called: bytes, calling: bytes) -> None:
    pdu, request = requested(*titles)
    assert (request.called_field, request.calling_field) == (called, calling)
    assert pdu[:10] + b"ANY-SCP         ECHOSCU         " + pdu[42:] == requested()[0]


IDENTITIES = {
    b"\1\1\0\10secret\xc3\xb6\0\0": Identity(user="secretö"),
    b"\2\1\0\2me\0\6secret": Identity(user="me", password="secret"),
    b"\2\1\0\2me\0\2\xff\0": Identity(user="me", password="\udcff\0"),  # not UTF-8
    b"\3\1\0\2\0\xff\0\0": Identity(kerberos=b"\0\xff"),
    b"\4\1\0\4<a/>\0\0": Identity(saml="<a/>"),
    b"\5\1\0\5a.b.c\0\0": Identity(jwt="a.b.c"),
}


@pytest.mark.parametrize("item", IDENTITIES)
def test_the_user_identity_is_an_item_that_asks_for_an_answer_and_is_in_no_log(
    item: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """PS3.7 D.3.3.7.1."""
    pdu, request = requested(identity=IDENTITIES[item])
    assert request.user_items[0x58] == item
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(pdu)
    (user,) = (each for each in decoded.to_primitive().user_information if isinstance(each, UserIdentityNegotiation))
    assert (user.user_identity_type, user.positive_response_requested) == (item[0], True)
    shown, place = echo._without_secret(pdu), pdu.index(item)
    assert shown == pdu[: place + 2] + bytes(len(item) - 2) + pdu[place + len(item) :]
    with caplog.at_level(logging.DEBUG, "dicom_echo"):
        echo._log_pdus([(0.0, "sent", shown)], "pacs")
    assert "user identity: not shown" in caplog.text
    assert "secret" not in caplog.text
    assert item[4:].hex(" ") not in caplog.text


def test_the_answer_to_an_identity_is_in_no_log_either() -> None:
    """It may be a Kerberos ticket of the server (PS3.7 D.3.3.7.2)."""
    pdu = rawpeer.associate_ac(extra_user_items=rawpeer.item(0x59, b"\0\6ticket") + rawpeer.item(0x53, b"\0\1\0\1"))
    assert echo._without_secret(pdu) == pdu.replace(b"ticket", bytes(6))


AE = st.text("AZ az09_-@:/!~", min_size=1, max_size=16).filter(str.strip)
PROPOSED = st.lists(st.sampled_from(list(SYNTAXES)), min_size=1, max_size=4, unique=True)


@calm
@given(AE, AE, st.just(0) | st.integers(16, 0xFFFFFFFF), PROPOSED)
def test_pynetdicom_reads_of_a_request_what_was_asked(called: str, calling: str, length: int, names: list[str]) -> None:
    pdu, _ = requested("pacs", called, calling, max_pdu=length, transfer_syntaxes=names)
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(pdu)
    read = decoded.to_primitive()
    assert (str(read.called_ae_title).strip(), str(read.calling_ae_title).strip()) == (called.strip(), calling.strip())
    assert read.maximum_length_received == length
    (context,) = read.presentation_context_definition_list
    assert (context.context_id, context.abstract_syntax) == (1, "1.2.840.10008.1.1")
    assert context.transfer_syntax == [SYNTAXES[name] for name in names]


# --- C-ECHO-RQ (PS3.7 9.3.5.1) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [0, 0x1234, 0xFFFF])
def test_the_echo_request_is_exact_and_fits_the_limit_of_the_peer(message_id: int) -> None:
    """PS3.8 D.1; the smallest have a PDU for every two bytes."""
    for limit in (*range(21), 50, 73, 74, 75, 128, 16384, 0xFFFFFFFF):
        pdus, rest = rawpeer.split_pdus(echo._encode_c_echo(message_id, limit))
        pdvs = [pdv for pdu in pdus for pdv in rawpeer.decode_pdvs(pdu.body)]
        assert (rest, {pdu.type for pdu in pdus}) == (b"", {rawpeer.P_DATA_TF})
        # No PDU is smaller than a header and 2 bytes.
        assert max(len(pdu.body) for pdu in pdus) <= (max(limit, 8) if limit else 1000)
        assert [pdv.control for pdv in pdvs] == [rawpeer.COMMAND] * (len(pdvs) - 1) + [rawpeer.COMMAND | rawpeer.LAST]
        assert {pdv.context_id for pdv in pdvs} == {1}
        assert all(len(pdv.data) % 2 == 0 for pdv in pdvs), "fragments have an even length (PS3.8 E.2)"
        assert rawpeer.decode_command(b"".join(pdv.data for pdv in pdvs)) == {
            rawpeer.GROUP_LENGTH: b"\x38\0\0\0",
            rawpeer.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
            rawpeer.COMMAND_FIELD: b"\x30\0",
            rawpeer.MESSAGE_ID: message_id.to_bytes(2, "little"),
            rawpeer.DATA_SET_TYPE: b"\1\1",
        }
        message = C_ECHO_RQ()
        for pdu in pdus:
            decoded = P_DATA_TF()
            decoded.decode(rawpeer.pdu(*pdu))
            complete = message.decode_msg(decoded.to_primitive())
        assert (complete, message.command_set.MessageID) == (True, message_id)


def test_nothing_follows_the_header_of_what_ends_an_association() -> None:
    assert echo._RELEASE_RQ == rawpeer.release_rq() == echo._Dialogue(fuzz.REQUEST).release()
    assert rawpeer.release_rp() == echo._RELEASE_RP
    assert rawpeer.abort(0, 0) == echo._ABORT


# --- Answers, as pynetdicom reads them -------------------------------------------------------------------------------

CONTEXTS = st.lists(
    st.tuples(st.sampled_from([1, 3, 5]), st.integers(0, 4), st.sampled_from([IMPLICIT, EXPLICIT, JPEG])),
    min_size=1, max_size=3, unique_by=lambda context: context[0],
)  # fmt: skip
NAMES = st.text("ABC 09_", min_size=1, max_size=16).filter(str.strip)


@calm
@given(CONTEXTS, st.integers(0, 0xFFFFFFFF), st.sampled_from(["1.2.3", "2.25.57005"]), st.none() | NAMES)
def test_an_acceptance_is_read_as_pynetdicom_reads_it(
    contexts: list[tuple[int, int, str]], length: int, uid: str, name: str | None
) -> None:
    pdu = rawpeer.associate_ac(contexts, max_length=length, implementation_class_uid=uid, version_name=name)
    decoded = A_ASSOCIATE_AC()
    decoded.decode(pdu)
    theirs, ours = decoded.to_primitive(), echo._decode_associate_ac(pdu)
    results = {context.context_id: context for context in theirs.presentation_context_definition_results_list}
    assert ours.result == (results[1].result if 1 in results else None)
    assert list(ours.transfer_syntaxes) == (results[1].transfer_syntax if ours.result == 0 else [])
    assert (ours.max_pdu, ours.class_uid) == (theirs.maximum_length_received, str(theirs.implementation_class_uid))
    assert ours.version_name == (name and name.strip())
    assert ours.notes == []


@calm
@given(
    st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.none() | st.sampled_from(["no class", "x"]), st.integers(1, 40)
)
def test_a_command_set_is_read_as_pynetdicom_reads_it(
    message_id: int, status: int, comment: str | None, half: int
) -> None:
    """Their encoder's bytes too, however they are cut into values."""
    response = C_ECHO()
    response.MessageIDBeingRespondedTo, response.AffectedSOPClassUID = message_id, "1.2.840.10008.1.1"
    response.Status = 0
    message = C_ECHO_RSP()
    message.primitive_to_message(response)
    message.command_set.Status = status
    if comment:
        message.command_set.ErrorComment = comment
    pdus = [P_DATA_TF(data).encode() for data in message.encode_msg(1, 6 + 2 * half)]
    command = echo._decode_command(b"".join(part for pdu in pdus for _, _, part in echo._decode_p_data(pdu)))
    assert command.number("Command Field") == message.command_set.CommandField
    assert command.number("Message ID Being Responded To") == message_id
    assert (command.number("Status"), command.number("Command Data Set Type")) == (status, 0x0101)
    assert command.text("Affected SOP Class UID") == "1.2.840.10008.1.1"
    assert (command.text("Error Comment"), command.notes) == (comment or "", [])


# --- PDUs in words ---------------------------------------------------------------------------------------------------

ACCEPT_IN_WORDS = """\
  called AE title "ANY-SCP", calling AE title "ECHOSCU"
  application context: 1.2.840.10008.3.1.1.1
  presentation context 1, result 0
    transfer syntax: 1.2.840.10008.1.2
  user information
    maximum length: 16384
    implementation class UID: 2.25.57005
    implementation version name: RAWPEER
"""
IN_WORDS = {
    "acceptance": (rawpeer.GOOD_ACCEPT, ACCEPT_IN_WORDS),
    "acceptance cut short": (rawpeer.GOOD_ACCEPT[:-1], "".join(ACCEPT_IN_WORDS.splitlines(keepends=True)[:4])),
    "escapes": (rawpeer.associate_ac(version_name="\x1b[2J"), ACCEPT_IN_WORDS.replace("RAWPEER", r"\x1b[2J")),
    "rejection": (rawpeer.associate_rj(1, 2, 3), "  result 1, source 2, reason 3\n"),
    "abort": (rawpeer.abort(2, 5), "  source 2, reason 5\n"),
    "release": (rawpeer.release_rq(), ""),
    "junk": (b"xyz", ""),
    "answer": (
        rawpeer.echo_rsp(1, 0x0122),
        "  presentation context 1, command set, last fragment\n    Affected SOP Class UID: 1.2.840.10008.1.1\n"
        "    Command Field: 8030H\n    Message ID Being Responded To: 0001H\n    Command Data Set Type: 0101H\n"
        "    Status: 0122H\n",
    ),
    "data set": (rawpeer.p_data([(1, 0, b"data")]), "  presentation context 1, data set\n"),
}


@pytest.mark.parametrize(("pdu", "words"), IN_WORDS.values(), ids=IN_WORDS)
def test_a_pdu_in_words(pdu: bytes, words: str) -> None:
    assert echo._describe_pdu(pdu) == words


def test_a_pdu_as_hex() -> None:
    assert echo._hexdump(b"DICOM\0\x7f\xff" + bytes(range(48, 58))) == (
        "  0000  44 49 43 4f 4d 00 7f ff 30 31 32 33 34 35 36 37  DICOM...01234567\n"
        "  0010  38 39                                            89"
    )


@calm
@given(st.integers(0, 7), st.binary(max_size=60), st.binary(max_size=60), st.booleans())
def test_any_bytes_can_be_shown_and_none_is_added(kind: int, middle: bytes, end: bytes, good: bool) -> None:
    pdu = rawpeer.pdu(kind, (rawpeer.GOOD_ACCEPT[6:74] if good else b"") + middle + end)
    assert len(echo._without_secret(pdu)) == len(pdu)
    echo._describe_pdu(pdu)


def test_no_spoilt_pdu_surprises_the_log(caplog: pytest.LogCaptureFixture) -> None:
    pdus: list[tuple[float, str, bytes]] = []
    with caplog.at_level(logging.DEBUG, "dicom_echo"):
        for seed in range(500):
            dialogue = echo._Dialogue(fuzz.REQUEST)
            dialogue.trace = lambda pdu: pdus.append((0.0, "received", pdu))
            dialogue.receive_data(fuzz.spoilt(seed))
            with contextlib.suppress(echo.EchoError):
                dialogue.next_event()
                dialogue.echo(1)
                dialogue.next_event()
        echo._log_pdus(pdus, "pacs")
    assert len(caplog.records) == len(pdus) > 500
    assert not any(character in caplog.text for character in "\x1b\x07\x00")


def test_a_codec_that_is_too_old_is_told_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise TypeError("decode_msg() missing 1 required argument")

    monkeypatch.setattr(echo, "_encode_c_echo", broken)
    with pytest.raises(ImportError, match=r"^pynetdicom 2\.0\.2 or later is required .*; found pynetdicom \d"):
        echo._load_codec()


@pytest.mark.parametrize("error", [metadata.PackageNotFoundError, FileNotFoundError, zipfile.BadZipFile])
def test_versions_that_cannot_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Of an archive that has been replaced or removed, say: that must not hide why pynetdicom cannot be loaded."""

    def version(_: str) -> str:
        raise error

    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda _: None)
    monkeypatch.setattr(metadata, "version", version)
    assert echo._codec_versions() == []
