"""The raw peer, which judges most of the tests, is judged by a client that is not ours, and by its bytes."""

from __future__ import annotations

import socket
import struct
import subprocess
from pathlib import Path

import peers
import pytest
import rawpeer
from rawpeer import Endpoint, RawPeer

GOOD = [rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_RELEASE_RQ]


def run_echoscu(program: str, endpoint: Endpoint, *options: str) -> subprocess.CompletedProcess[str]:
    """An echo by DCMTK."""
    command = [program, "-v", "-to", "5", "-ta", "5", "-td", "5", *options, endpoint.host, str(endpoint.port)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False)


def test_it_answers_echoscu_and_tells_what_was_asked(echoscu: str) -> None:
    with RawPeer() as peer:
        result = run_echoscu(echoscu, peer.endpoint, "-aec", "SOMEBODY")
        assert result.returncode == 0, result.stdout
        conversation = peer.conversation()
        request = conversation.request
        assert conversation.types == GOOD
        assert (request.called, request.calling, request.max_length) == ("SOMEBODY", "ECHOSCU", 16384)
        assert request.application_context == rawpeer.APPLICATION_CONTEXT
        proposed = [(context.abstract_syntax, context.transfer_syntaxes) for context in request.contexts]
        assert proposed == [(rawpeer.VERIFICATION, (rawpeer.IMPLICIT_VR_LITTLE_ENDIAN,))]
        assert conversation.message_ids == [1]
        assert conversation.commands[0][rawpeer.COMMAND_FIELD] == b"\x30\x00"
        assert run_echoscu(echoscu, peer.endpoint, "--repeat", "3").returncode == 0
        assert peer.conversation(1).message_ids == [1, 2, 3]


def test_fragments_and_single_bytes_are_understood(echoscu: str) -> None:
    cut_up = [rawpeer.fragments(rawpeer.echo_rsp_command(), size) for size in (2, 34, 1000)]
    answers: list[rawpeer.Step] = [rawpeer.p_data(pdvs) for pdvs in cut_up]
    answers += [b"".join(rawpeer.p_data([pdv]) for pdv in pdvs) for pdvs in cut_up]
    answers.append(rawpeer.in_pieces(rawpeer.GOOD_ECHO, size=1, delay=0.0005))
    with RawPeer(*[rawpeer.script(echo=answer) for answer in answers]) as peer:
        for _ in answers:
            result = run_echoscu(echoscu, peer.endpoint)
            assert result.returncode == 0, result.stdout


def test_echoscu_understands_what_is_wrong(echoscu: str) -> None:
    said = {
        "Called AE Title Not Recognized": rawpeer.script(accept=rawpeer.associate_rj(1, 1, 7)),
        "Rejected Transient": rawpeer.script(accept=rawpeer.associate_rj(2, 3, 2)),
        "Peer aborted Association (or never connected)": rawpeer.script(accept=rawpeer.abort(2, 1)),
        "No Acceptable Presentation Contexts": rawpeer.script(accept=rawpeer.associate_ac([(1, 3, None)])),
        "Unknown Status: 0x122": rawpeer.script(echo=rawpeer.echo_rsp(1, 0x0122)),
        "Unexpected Response MsgId: 99 (expected: 1)": rawpeer.script(echo=rawpeer.echo_rsp(99)),
        "Peer aborted Association": rawpeer.script(echo=rawpeer.abort(0, 0)),
    }
    with RawPeer(*said.values()) as peer:
        for words in said:
            assert words in run_echoscu(echoscu, peer.endpoint).stdout


def test_what_the_client_does_wrong_fails_the_test() -> None:
    complaints = {
        "PDU type 1 was due, the client sent 5": rawpeer.release_rq(),
        "the client sent no DICOM: b'GET": b"GET / HTTP/1.0\r\n\r\n",
        "unpack_from requires a buffer": rawpeer.pdu(rawpeer.A_ASSOCIATE_RQ, b""),
    }

    def talk(data: bytes) -> None:
        with RawPeer() as peer:
            with socket.create_connection((peer.host, peer.port), timeout=2) as sock:
                sock.sendall(data)
            peer.conversation()

    for complaint, data in complaints.items():
        with pytest.raises((AssertionError, struct.error), match=complaint):
            talk(data)


def test_a_script_of_python_is_no_foreign_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pynetdicom has some that are called as DCMTK's are."""
    for folder, line in ("first", "#!/somewhere/bin/python3"), ("second", "#!/bin/sh"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some-scp").write_text(line + "\n")
        (tmp_path / folder / "some-scp").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert peers.find_program("some-scp") == str(tmp_path / "second" / "some-scp")


def test_small_pdus() -> None:
    encoded = {
        rawpeer.associate_rj(1, 2, 3): "03 00 00 00 00 04 00 01 02 03",
        rawpeer.release_rq(): "05 00 00 00 00 04 00 00 00 00",
        rawpeer.release_rp(): "06 00 00 00 00 04 00 00 00 00",
        rawpeer.abort(2, 6): "07 00 00 00 00 04 00 00 02 06",
        rawpeer.p_data([(1, 3, b"abc")]): "04 00 00 00 00 09 00 00 00 05 01 03 61 62 63",
        rawpeer.pdu(4, b"ab", length=0xFFFFFFFF): "04 00 ff ff ff ff 61 62",
    }
    assert [pdu.hex(" ") for pdu in encoded] == list(encoded.values())


def test_the_elements_of_a_command_set() -> None:
    command = rawpeer.decode_command(rawpeer.echo_rsp_command(258, 0xFF00, error_comment="odd"))
    assert command == {
        rawpeer.GROUP_LENGTH: b"\x4e\x00\x00\x00",
        rawpeer.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
        rawpeer.COMMAND_FIELD: b"\x30\x80",
        rawpeer.MESSAGE_ID_RESPONDED_TO: b"\x02\x01",
        rawpeer.DATA_SET_TYPE: b"\x01\x01",
        rawpeer.STATUS: b"\x00\xff",
        rawpeer.ERROR_COMMENT: b"odd ",
    }
