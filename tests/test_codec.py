"""The codec: requests as rawpeer reads them, and PDUs in words."""

from __future__ import annotations

import contextlib
import importlib.machinery
import logging
import zipfile
from dataclasses import replace
from importlib import metadata

import fuzz
import pytest
import rawpeer
from hypothesis import given, settings
from hypothesis import strategies as st

import dicom_echo as echo
from dicom_echo import Identity

IMPLICIT, EXPLICIT = rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN


def associate_rq(
    called: str = "ANY-SCP", calling: str = "ECHOSCU", **options: object
) -> tuple[bytes, rawpeer.AssociateRequest]:
    """The A-ASSOCIATE-RQ of these parameters, as bytes and read by hand."""
    request = echo._Request("pacs", called, calling, **options)  # type: ignore[arg-type]
    [(pdu_type, body)], rest = rawpeer.split_pdus(pdu := echo._Dialogue(request).associate())
    assert (pdu_type, rest) == (rawpeer.A_ASSOCIATE_RQ, b"")
    return pdu, rawpeer.decode_associate_rq(body)


# --- A-ASSOCIATE-RQ (PS3.8 9.3.2) ------------------------------------------------------------------------------------


def test_the_request_proposes_verification_once_and_says_who_we_are() -> None:
    _, request = associate_rq()
    user = dict(request.user_items)
    class_uid, version_name = user.pop(0x52), user.pop(0x55)
    assert user == {0x51: b"\0\0\x3f\xfe"}
    assert class_uid.startswith(b"2.25.")
    assert version_name.startswith(b"DICOM_ECHO_")
    assert (len(class_uid) <= 64, len(version_name) <= 16) == (True, True)
    assert replace(request, user_items={}) == rawpeer.AssociateRequest(
        1, b"ANY-SCP         ", b"ECHOSCU         ", "1.2.840.10008.3.1.1.1",
        (rawpeer.ProposedContext(1, "1.2.840.10008.1.1", (IMPLICIT, EXPLICIT)),), {},
    )  # fmt: skip


def test_the_titles_are_padded_to_16_bytes() -> None:
    for titles, fields in {
        ("X", "Y"): (b"X               ", b"Y               "),
        ("SIXTEEN-LETTERS!", "A B@C:D"): (b"SIXTEEN-LETTERS!", b"A B@C:D         "),
        ("  padded  ", " p "): (b"padded          ", b"p               "),
    }.items():
        pdu, request = associate_rq(*titles)
        assert (request.called_field, request.calling_field) == fields
        assert pdu[:10] + b"ANY-SCP         ECHOSCU         " + pdu[42:] == associate_rq()[0]


def test_the_maximum_length_and_the_transfer_syntaxes() -> None:
    jpeg = "1.2.840.10008.1.2.4.50"
    deflated, big_endian = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
    for length in (0, 16, 0xFFFFFFFF):
        assert associate_rq(max_pdu=length)[1].max_length == length
    for names, syntaxes in {
        ("implicit",): (IMPLICIT,),
        ("deflated", "big-endian", jpeg, "explicit"): (deflated, big_endian, jpeg, EXPLICIT),
    }.items():
        [context] = associate_rq(transfer_syntaxes=names)[1].contexts
        assert context == rawpeer.ProposedContext(1, "1.2.840.10008.1.1", syntaxes)


IDENTITIES = {
    b"\1\1\0\10secret\xc3\xb6\0\0": Identity(user="secretö"),
    b"\2\1\0\2me\0\6secret": Identity(user="me", password="secret"),
    b"\2\1\0\2me\0\2\xff\0": Identity(user="me", password="\udcff\0"),  # not UTF-8
    b"\3\1\0\2\0\xff\0\0": Identity(kerberos=b"\0\xff"),
    b"\4\1\0\4<a/>\0\0": Identity(saml="<a/>"),
    b"\5\1\0\5a.b.c\0\0": Identity(jwt="a.b.c"),
}


def test_the_user_identity_is_an_item_that_asks_for_an_answer_and_is_in_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PS3.7 D.3.3.7.1."""
    for item, identity in IDENTITIES.items():
        pdu, request = associate_rq(identity=identity)
        assert request.user_items[0x58] == item
        shown, place = echo._without_secret(pdu), pdu.index(item)
        assert shown == pdu[: place + 2] + bytes(len(item) - 2) + pdu[place + len(item) :]
        with caplog.at_level(logging.DEBUG, "dicom_echo"):
            echo._log_pdus([(0.0, "sent", shown)], "pacs")
        assert "user identity: not shown" in caplog.text
        assert "secret" not in caplog.text
        assert item[4:].hex(" ") not in caplog.text
        caplog.clear()


def test_the_answer_to_an_identity_is_in_no_log_either() -> None:
    """It may be a Kerberos ticket of the server (PS3.7 D.3.3.7.2)."""
    pdu = rawpeer.associate_ac(extra_user_items=rawpeer.item(0x59, b"\0\6ticket") + rawpeer.item(0x53, b"\0\1\0\1"))
    assert echo._without_secret(pdu) == pdu.replace(b"ticket", bytes(6))


# --- What follows it -------------------------------------------------------------------------------------------------


def test_the_echo_request_is_exact_and_fits_the_limit_of_the_peer() -> None:
    """PS3.7 9.3.5.1, PS3.8 D.1; the smallest limits have a PDU for every two bytes."""
    for message_id in (0, 0x1234, 0xFFFF):
        for limit in (*range(21), 50, 73, 74, 75, 128, 16384, 0xFFFFFFFF):
            pdus, rest = rawpeer.split_pdus(echo._encode_c_echo(message_id, limit))
            pdvs = [pdv for pdu in pdus for pdv in rawpeer.decode_pdvs(pdu.body)]
            assert (rest, {pdu.type for pdu in pdus}) == (b"", {rawpeer.P_DATA_TF})
            # No PDU is smaller than a header and 2 bytes.
            assert max(len(pdu.body) for pdu in pdus) <= (max(limit, 8) if limit else 1000)
            controls = [rawpeer.COMMAND] * (len(pdvs) - 1) + [rawpeer.COMMAND | rawpeer.LAST]
            assert [(pdv.context_id, pdv.control) for pdv in pdvs] == [(1, control) for control in controls]
            assert all(len(pdv.data) % 2 == 0 for pdv in pdvs), "fragments have an even length (PS3.8 E.2)"
            assert rawpeer.decode_command(b"".join(pdv.data for pdv in pdvs)) == {
                rawpeer.GROUP_LENGTH: b"\x38\0\0\0",
                rawpeer.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
                rawpeer.COMMAND_FIELD: b"\x30\0",
                rawpeer.MESSAGE_ID: message_id.to_bytes(2, "little"),
                rawpeer.DATA_SET_TYPE: b"\1\1",
            }


def test_nothing_follows_the_header_of_what_ends_an_association() -> None:
    assert echo._RELEASE_RQ == rawpeer.release_rq() == echo._Dialogue(fuzz.REQUEST).release()
    assert rawpeer.release_rp() == echo._RELEASE_RP
    assert rawpeer.abort(0, 0) == echo._ABORT


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


def test_a_pdu_in_words() -> None:
    assert {name: echo._describe_pdu(pdu) for name, (pdu, _) in IN_WORDS.items()} == {
        name: words for name, (_, words) in IN_WORDS.items()
    }


def test_a_pdu_as_hex() -> None:
    assert echo._hexdump(b"DICOM\0\x7f\xff" + bytes(range(48, 58))) == (
        "  0000  44 49 43 4f 4d 00 7f ff 30 31 32 33 34 35 36 37  DICOM...01234567\n"
        "  0010  38 39                                            89"
    )


@settings(max_examples=60, deadline=None)  # the machine may be busy
@given(st.integers(0, 7), st.binary(max_size=120), st.booleans())
def test_any_bytes_can_be_shown_and_none_is_added(kind: int, body: bytes, good: bool) -> None:
    pdu = rawpeer.pdu(kind, (rawpeer.GOOD_ACCEPT[6:74] if good else b"") + body)
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


def test_versions_that_cannot_be_read_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an archive that has been replaced or removed, say: that must not hide why pynetdicom cannot be loaded."""
    errors = [metadata.PackageNotFoundError, FileNotFoundError, zipfile.BadZipFile] * 2

    def version(_: str) -> str:
        raise errors.pop()

    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda _: None)
    monkeypatch.setattr(metadata, "version", version)
    while errors:
        assert echo._codec_versions() == []
