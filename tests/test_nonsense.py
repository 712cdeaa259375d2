"""Peers that send what is not due, what is not DICOM, or DICOM that is broken: each is a ProtocolError, at once."""

from __future__ import annotations

import pytest
import rawpeer
from inprocess import run_raw
from rawpeer import A_ASSOCIATE_RQ, Close, Expect, Send, script

from dicom_echo import Phase

ASSOCIATING = "   while associating with ANY-SCP@HOST:PORT as ECHOSCU"
ECHOING = "   while echoing ANY-SCP@HOST:PORT as ECHOSCU"
HINT_NOT_DICOM = "   hint: this is not a DICOM port"

ACCEPTED = rawpeer.GOOD_ACCEPT

# --- What is not due -------------------------------------------------------------------------------------------------

NAMES = {
    1: "A-ASSOCIATE-RQ", 2: "A-ASSOCIATE-AC", 3: "A-ASSOCIATE-RJ", 4: "P-DATA-TF", 5: "A-RELEASE-RQ", 6: "A-RELEASE-RP"
}  # fmt: skip
SAMPLES = {
    1: rawpeer.pdu(1, ACCEPTED[6:]),
    2: ACCEPTED,
    3: rawpeer.associate_rj(1, 1, 1),
    4: rawpeer.GOOD_ECHO,
    5: rawpeer.release_rq(),
    6: rawpeer.release_rp(),
}


@pytest.mark.parametrize("pdu_type", [1, 4, 5, 6], ids=NAMES.get)
def test_a_pdu_that_is_not_due_while_associating(pdu_type: int, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(accept=SAMPLES[pdu_type]))
    why = f"{NAMES[pdu_type]} where A-ASSOCIATE-AC or A-ASSOCIATE-RJ is due"
    assert ran[:3] == (1, f"❌ Protocol error: {why}\n{ASSOCIATING}\n", "")


@pytest.mark.parametrize("pdu_type", [1, 2, 3, 5, 6], ids=NAMES.get)
def test_a_pdu_that_is_not_due_while_echoing(pdu_type: int, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(echo=SAMPLES[pdu_type]))
    why = f"{NAMES[pdu_type]} where P-DATA-TF with the C-ECHO-RSP is due"
    assert ran[:3] == (1, f"❌ Protocol error: {why}\n{ECHOING}\n", "")


@pytest.mark.parametrize(
    ("answer", "name", "hint"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "HTTP", "this is not a DICOM port"),
        (b"<html><body>400", "HTML or XML", "this is not a DICOM port"),
        (b"SSH-2.0-dropbear\r\n", "SSH", "this is not a DICOM port"),
        (b"220 mail.example.org ESMTP\r\n", "SMTP or FTP", "this is not a DICOM port"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS", "the port speaks TLS: try --tls"),
        (b"\x16\x03\x03\x00\x31\x02\x00", "TLS", "the port speaks TLS: try --tls"),
        (b"\x0bMSH|^~\\&|HIS", "HL7 (MLLP)", "this is not a DICOM port"),
        (b"RFB 003.008\n", "VNC", "this is not a DICOM port"),
    ],
)
def test_another_protocol_is_called_by_its_name(
    answer: bytes, name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_raw(capsys, script(accept=answer))
    assert ran[:3] == (1, f"❌ Protocol error: the answer is {name}, not DICOM\n{ASSOCIATING}\n   hint: {hint}\n", "")


@pytest.mark.parametrize("answer", [bytes(6), b"\x08\0\0\0\0\0", b"\xff" * 64, b"\x80\x00\x02\x10"], ids=bytes.hex)
def test_what_nobody_knows_is_not_dicom(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, (Expect(A_ASSOCIATE_RQ), Send(answer), Close()))
    assert ran[:3] == (1, f"❌ Protocol error: the answer is not DICOM\n{ASSOCIATING}\n{HINT_NOT_DICOM}\n", "")


def test_a_greeting_before_our_request_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, (Send(b"220 mail.example.org ESMTP\r\n"),))
    assert ran.out.startswith("❌ Protocol error: the answer is SMTP or FTP, not DICOM\n")
    assert ran.code == 1


# --- Lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [(1 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("phase", [Phase.associate, Phase.echo])
def test_an_impossible_length_fails_at_once(phase: Phase, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    huge = rawpeer.pdu(2 if phase == Phase.associate else 4, bytes(100), length)
    played = script(accept=huge) if phase == Phase.associate else script(echo=huge)
    ran = run_raw(capsys, played)
    name, doing = ("A-ASSOCIATE-AC", ASSOCIATING) if phase == Phase.associate else ("P-DATA-TF", ECHOING)
    assert ran[:3] == (1, f"❌ Protocol error: {name} with an impossible length of {length} bytes\n{doing}\n", "")
    assert ran.seconds < 3


@pytest.mark.parametrize("length", [0, 3, 5, 0xFFFFFFFF])
@pytest.mark.parametrize(("pdu_type", "name"), [(3, "A-ASSOCIATE-RJ"), (7, "A-ABORT")])
def test_a_pdu_of_fixed_length_has_it(
    pdu_type: int, name: str, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_raw(capsys, script(accept=rawpeer.pdu(pdu_type, bytes(5), length)))
    assert ran[:3] == (1, f"❌ Protocol error: {name} with an impossible length of {length} bytes\n{ASSOCIATING}\n", "")


@pytest.mark.parametrize("length", [0, 1, 2, 10, 67])
def test_an_acceptance_that_is_too_short(length: int, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(accept=rawpeer.pdu(2, ACCEPTED[6 : 6 + length])))
    assert ran.out.startswith("❌ Protocol error: ")
    assert ASSOCIATING in ran.out
    assert (ran.err, ran.code) == ("", 1)


@pytest.mark.parametrize("cut", range(1, 36, 3))
def test_an_acceptance_whose_items_are_cut_short(cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(accept=rawpeer.pdu(2, ACCEPTED[6:-cut])))
    assert ran.out == f"❌ Protocol error: malformed A-ASSOCIATE-AC\n{ASSOCIATING}\n   hint: -d shows its bytes\n"
    assert (ran.err, ran.code) == ("", 1)


@pytest.mark.parametrize(
    "body",
    [b"\0", b"\0\0\0\0", b"\0\0\0\x01\x01", b"\0\0\0\xff\x01\x03abc", b"\xff\xff\xff\xff\x01\x03"],
    ids=bytes.hex,
)
def test_a_pdv_with_a_wrong_length(body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(echo=rawpeer.pdu(4, body)))
    assert ran.out == f"❌ Protocol error: malformed P-DATA-TF\n{ECHOING}\n   hint: -d shows its bytes\n"
    assert (ran.err, ran.code) == ("", 1)


# --- Elements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [rawpeer.COMMAND_FIELD, rawpeer.MESSAGE_ID_RESPONDED_TO, rawpeer.STATUS])
@pytest.mark.parametrize("length", [None, 0, 1, 3, 4])
def test_an_element_that_we_need_is_missing_or_no_number(
    element: int, length: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = rawpeer.echo_rsp_command(omit=[element])
    if length is not None:
        command = rawpeer.echo_rsp_command(replace={element: bytes(length)})
    ran = run_raw(capsys, script(echo=rawpeer.command_pdu(command)))
    assert ran.out.startswith("❌ Protocol error: ")
    assert ECHOING in ran.out
    assert (ran.err, ran.code) == ("", 1)


@pytest.mark.parametrize("command", [b"", b"\0", bytes(8), b"\xff" * 32, rawpeer.echo_rsp_command()[:-1]])
def test_a_command_set_that_is_none(command: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(echo=rawpeer.command_pdu(command)))
    assert ran.out == f"❌ Protocol error: malformed command set\n{ECHOING}\n   hint: -d shows its bytes\n"
    assert (ran.err, ran.code) == ("", 1)
