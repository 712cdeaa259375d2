"""Answers that are odd but right, in any pieces, and statuses that are not Success: what counts is what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rawpeer
from inprocess import run, run_raw
from rawpeer import A_ASSOCIATE_RQ, Content, Expect, RawPeer, Script, Send, script

import dicom_echo as echo
from dicom_echo import Phase

RSP = rawpeer.echo_rsp_command(1)


def p_datas(*pdvs: rawpeer.Pdv) -> bytes:
    """A PDU for each PDV."""
    return b"".join(rawpeer.p_data([pdv]) for pdv in pdvs)


# --- Pieces ----------------------------------------------------------------------------------------------------------


def slowly(content: Content) -> Send:
    """Byte by byte, each on its own."""
    return Send(content, chunk=1, delay=0.0005)


PIECES: dict[str, Script] = {
    "acceptance in bytes": script(accept=slowly(rawpeer.GOOD_ACCEPT)),
    "answer in bytes": script(echo=slowly(rawpeer.GOOD_ECHO)),
    "release in bytes": script(release=slowly(rawpeer.GOOD_RELEASE)),
    "all in bytes": script(slowly(rawpeer.GOOD_ACCEPT), slowly(rawpeer.GOOD_ECHO), slowly(rawpeer.GOOD_RELEASE)),
    "answer in two PDVs": script(echo=rawpeer.p_data(rawpeer.fragments(RSP, 40))),
    "answer in two PDUs": script(echo=p_datas(*rawpeer.fragments(RSP, 40))),
    "answer in two PDUs, in bytes": script(echo=slowly(p_datas(*rawpeer.fragments(RSP, 40)))),
    "a PDV for each byte": script(echo=rawpeer.p_data(rawpeer.fragments(RSP, 1))),
    "a PDU for each byte": script(echo=p_datas(*rawpeer.fragments(RSP, 1))),
    "an empty fragment first": script(echo=p_datas(rawpeer.Pdv(1, rawpeer.COMMAND, b"")) + rawpeer.command_pdu(RSP)),
    "an empty fragment last": script(
        echo=p_datas(rawpeer.Pdv(1, rawpeer.COMMAND, RSP), rawpeer.Pdv(1, rawpeer.COMMAND | rawpeer.LAST, b""))
    ),
    "answer twice in one segment": script(echo=rawpeer.GOOD_ECHO * 2),
    "acceptance and answer in one segment": script(rawpeer.GOOD_ACCEPT + rawpeer.GOOD_ECHO, echo=b""),
    "everything in one segment": (Expect(A_ASSOCIATE_RQ), Send(rawpeer.GOOD_STREAM)),
    "answer and release in one segment": script(echo=rawpeer.GOOD_ECHO + rawpeer.GOOD_RELEASE),
    "reserved bits in the message control header": script(echo=rawpeer.p_data([(1, 0xFF, RSP)])),
}  # fmt: skip


@pytest.mark.parametrize("played", PIECES.values(), ids=PIECES)
def test_the_pieces_do_not_matter(played: Script) -> None:
    with RawPeer(played) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.error, result.status, result.ok, result.notes) == (None, 0, True, ())


# --- What we are not to test, or need not ----------------------------------------------------------------------------

UNKNOWN_ITEMS = {
    "asynchronous operations": rawpeer.item(0x53, b"\0\1\0\1"),
    "role selection": rawpeer.item(0x54, b"\0\x11" + b"1.2.840.10008.1.1" + b"\1\0"),
    "extended negotiation": rawpeer.item(0x56, b"\0\x11" + b"1.2.840.10008.1.1" + b"\1"),
    "user identity": rawpeer.item(0x59, b"\0\0"),
    "reserved": rawpeer.item(0x5F, b"junk"),
    "private": rawpeer.item(0xFE, bytes(1000)),
    "empty": rawpeer.item(0x00, b""),
    "broken role selection": rawpeer.item(0x54, b"\xff\xff"),
}


@pytest.mark.parametrize("items", UNKNOWN_ITEMS.values(), ids=UNKNOWN_ITEMS)
def test_unknown_sub_items_are_ignored(items: bytes) -> None:
    assert_accepted(rawpeer.associate_ac(extra_user_items=items))


@pytest.mark.parametrize("item", [rawpeer.item(0x7F, b"junk"), rawpeer.item(0x20, b""), rawpeer.item(0, b"")])
def test_unknown_items_are_ignored(item: bytes) -> None:
    assert_accepted(rawpeer.pdu(2, rawpeer.GOOD_ACCEPT[6:] + item))


@pytest.mark.parametrize("title", [bytes(16), b" " * 16, b"\xff" * 16, b"\\\r\n\x1b" * 4], ids=bytes.hex)
def test_the_titles_in_the_answer_are_reserved(title: bytes) -> None:
    assert_accepted(rawpeer.associate_ac(called_field=title, calling_field=title))


@pytest.mark.parametrize("version", [0, 2, 3, 0xFFFF])
def test_the_protocol_version_of_the_answer_is_no_reason_to_fail(version: int) -> None:
    assert_accepted(rawpeer.associate_ac(protocol_version=version))


def test_a_peer_may_say_nothing_of_itself() -> None:
    bare = rawpeer.associate_ac(max_length=None, implementation_class_uid=None, version_name=None)
    without = rawpeer.pdu(2, rawpeer.GOOD_ACCEPT[6:].rpartition(b"\x50\x00")[0])
    for accept in (bare, without):
        assert assert_accepted(accept) == echo.Peer(None, None, None, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)


def test_a_peer_may_leave_the_application_context_out() -> None:
    name = rawpeer.item(0x10, rawpeer.APPLICATION_CONTEXT.encode())
    without = rawpeer.GOOD_ACCEPT[6:].replace(name, b"")
    assert len(without) == len(rawpeer.GOOD_ACCEPT[6:]) - len(name)
    assert_accepted(rawpeer.pdu(2, without))


def test_what_a_good_peer_says_of_itself_is_in_the_result() -> None:
    contexts = [(1, 0, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN)]
    accept = rawpeer.associate_ac(contexts, max_length=4096, implementation_class_uid="1.2.3", version_name="NAME 1")
    assert assert_accepted(accept) == echo.Peer("1.2.3", "NAME 1", 4096, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN)


def assert_accepted(accept: bytes) -> echo.Peer:
    """The echo is a success, without a note; what the peer says of itself."""
    with RawPeer(script(accept=accept)) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.error, result.ok, result.notes) == (None, True, ())
    assert result.peer is not None
    return result.peer


NAMES = {
    "not ASCII": ("PÄCS", None),
    "control characters": ("a\x1b[2Jb\r\nc", r"a\x1b[2Jb\r\nc"),
    "a backslash": ("A\\B", None),
    "seventeen characters": ("ABCDEFGHIJKLMNOPQ", "ABCDEFGHIJKLMNOPQ"),
    "very long": ("N" * 1000, "N" * 1000),
    "empty": ("", None),
    "spaces": (" " * 16, None),
    "zeros": ("NAME\0\0", None),
}


@pytest.mark.parametrize(("name", "shown"), NAMES.values(), ids=NAMES)
def test_what_a_peer_calls_itself_decides_nothing_and_is_escaped(
    name: str, shown: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_raw(capsys, script(accept=rawpeer.associate_ac(version_name=name)), "-v")
    assert (ran.out.splitlines()[0], ran.err, ran.code) == ("✅ Success", "", 0)
    assert all(character.isprintable() or character == "\n" for character in ran.out)
    if shown is not None:
        assert f"   peer      {shown} ({rawpeer.IMPLEMENTATION_CLASS_UID})\n" in ran.out


@pytest.mark.parametrize("uid", ["", "1.2.3\0", "1.02.3", "not a UID", "1." * 40 + "1", "1.2\x1b[2J", "ü"])
def test_the_class_uid_of_a_peer_decides_nothing(uid: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(accept=rawpeer.associate_ac(implementation_class_uid=uid)), "-v")
    assert (ran.out.splitlines()[0], ran.err, ran.code) == ("✅ Success", "", 0)
    assert all(character.isprintable() or character == "\n" for character in ran.out)


@pytest.mark.parametrize("option", ["-v", "-q", "-d"])
def test_a_warning_of_a_library_never_reaches_the_user(option: str, tmp_path: Path) -> None:
    accept = rawpeer.associate_ac(implementation_class_uid="1.02.x")
    source = Path(echo.__file__)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    with RawPeer(script(accept=accept)) as peer:
        done = subprocess.run(
            [sys.executable, str(source), option, peer.address],
            env=environment, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=30, check=False,
        )  # fmt: skip
    assert "Warning" not in done.stderr
    assert option == "-d" or done.stderr == ""
    assert done.returncode == 0


# --- Elements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", [rawpeer.GROUP_LENGTH, rawpeer.AFFECTED_SOP_CLASS_UID])
@pytest.mark.parametrize("length", [None, 0, 1, 3, 4])
def test_an_element_that_we_do_not_need_may_be_anything(element: int, length: int | None) -> None:
    command = rawpeer.echo_rsp_command(omit=[element])
    if length is not None:
        command = rawpeer.echo_rsp_command(replace={element: b"1" * length})
    with RawPeer(script(echo=rawpeer.command_pdu(command))) as peer:
        result = echo.probe(peer.address, message_id=1)
    assert (result.error, result.ok) == (None, True)


def test_unknown_elements_are_ignored() -> None:
    extra = {0x0003: b"1.2.3\0", 0x0110: b"\1\0", 0x0901: b"\0\0\0\0", 0x0FFF: b"??", 0x5010: b""}
    with RawPeer(script(echo=rawpeer.command_pdu(rawpeer.echo_rsp_command(replace=extra)))) as peer:
        assert echo.send(peer.address, message_id=1) == 0


# --- Statuses --------------------------------------------------------------------------------------------------------

STATUSES = [
    (0x0001, "1 (0001H, unknown status)"),
    (0x0110, "272 (0110H, unknown status)"),
    (0x0122, "290 (0122H, SOP class not supported)"),
    (0x0200, "512 (0200H, unknown status)"),
    (0x0210, "528 (0210H, duplicate invocation)"),
    (0x0211, "529 (0211H, unrecognized operation)"),
    (0x0212, "530 (0212H, mistyped argument)"),
    (0xB000, "45056 (B000H, unknown status)"),
    (0xFE00, "65024 (FE00H, unknown status)"),
    (0xFF00, "65280 (FF00H, unknown status)"),
    (0xFFFF, "65535 (FFFFH, unknown status)"),
]


@pytest.mark.parametrize(("status", "shown"), STATUSES)
def test_a_failing_status_is_a_warning_and_exit_code_1(
    status: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_raw(capsys, script(echo=rawpeer.echo_rsp(1, status)))
    assert ran[:3] == (1, f"⚠️ Warning: received non-zero status code: {shown}\n", "")


@pytest.mark.parametrize(("status", "shown"), STATUSES)
def test_a_failing_status_is_returned_not_raised(status: int, shown: str) -> None:
    with RawPeer(script(echo=rawpeer.echo_rsp(1, status))) as peer:
        assert echo.send(peer.address, message_id=1) == status
        result = echo.probe(peer.address, message_id=1)
    assert (result.ok, result.status, result.kind, result.error) == (False, status, "status", None)
    assert shown.endswith(f", {result.status_text})")
    assert list(result.timings) == [Phase.resolve, Phase.connect, Phase.associate, Phase.echo, Phase.release]


def test_a_failing_status_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_raw(capsys, script(echo=rawpeer.echo_rsp(1, 0x0122)), "--format", "json")
    shown = json.loads(ran.out)
    assert (shown["ok"], shown["status"], shown["status_text"]) == (False, 290, "SOP class not supported")
    assert (shown["error"]["kind"], shown["error"]["status"], ran.err, ran.code) == ("status", 290, "", 1)


def test_a_failing_status_may_be_fragmented() -> None:
    command = rawpeer.echo_rsp_command(1, 0xFF00)
    with RawPeer(script(echo=p_datas(*rawpeer.fragments(command, 7)))) as peer:
        assert echo.send(peer.address, message_id=1) == 0xFF00


@pytest.mark.parametrize(
    ("comment", "shown"),
    [
        ("no such class", "no such class"),
        ("go\x1b[31m away\r\n", r"go\x1b[31m away\r\n"),
        ("x" * 200, "x" * 200),
        ("a\\b\\c", r"a\b\c"),
    ],
)
@pytest.mark.parametrize("status", [0x0000, 0x0122])
def test_an_error_comment_is_a_note(comment: str, shown: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    answer = rawpeer.command_pdu(rawpeer.echo_rsp_command(1, status, error_comment=comment))
    ran = run_raw(capsys, script(echo=answer), "-v")
    assert ran.out.endswith(f"\n   note      error comment of the peer: {shown}\n")
    assert (ran.err, ran.code) == ("", 1 if status else 0)


def test_an_empty_error_comment_is_none() -> None:
    with RawPeer(script(echo=rawpeer.command_pdu(rawpeer.echo_rsp_command(error_comment=" ")))) as peer:
        assert echo.probe(peer.address, message_id=1).notes == ()


def test_every_message_id_is_sent_and_must_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    with RawPeer() as peer:
        for index, message_id in enumerate([0, 1, 255, 256, 65535]):
            assert run(capsys, peer.endpoint, "-id", str(message_id))[:3] == (0, "✅ Success\n", "")
            assert peer.conversation(index).message_ids == [message_id]
