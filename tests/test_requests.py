"""What goes over the wire, byte by byte: the A-ASSOCIATE-RQ, the C-ECHO-RQ, the release (PS3.8 9.3, PS3.7 9.3.5.1)."""

from __future__ import annotations

import pytest
import rawpeer
from inprocess import run
from rawpeer import Conversation, RawPeer, script

import dicom_echo as echo

IMPLICIT, EXPLICIT = rawpeer.IMPLICIT_VR_LITTLE_ENDIAN, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN
DEFLATED, BIG_ENDIAN, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50"


def sent(capsys: pytest.CaptureFixture[str], *options: str) -> Conversation:
    """What a good peer hears of an echo."""
    with RawPeer() as peer:
        ran = run(capsys, peer.endpoint, *options)
        assert ran[:3] == (0, "✅ Success\n", "")
        return peer.conversation()


def test_the_request_proposes_verification_once(capsys: pytest.CaptureFixture[str]) -> None:
    request = sent(capsys).request
    assert request.protocol_version == 1
    assert request.application_context == "1.2.840.10008.3.1.1.1"
    assert request.contexts == (rawpeer.ProposedContext(1, "1.2.840.10008.1.1", (IMPLICIT, EXPLICIT)),)


@pytest.mark.parametrize(
    ("options", "called", "calling"),
    [
        ([], b"ANY-SCP         ", b"ECHOSCU         "),
        (["-aec", "X", "-aet", "Y"], b"X               ", b"Y               "),
        (["-aec", "SIXTEEN-LETTERS!", "-aet", "A B@C:D"], b"SIXTEEN-LETTERS!", b"A B@C:D         "),
        (["--called", "  padded  ", "--calling", " p "], b"padded          ", b"p               "),
    ],
)
def test_the_titles_are_padded_to_16_bytes(
    options: list[str], called: bytes, calling: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    request = sent(capsys, *options).request
    assert (request.called_field, request.calling_field) == (called, calling)


def test_the_title_in_the_address_is_called() -> None:
    with RawPeer() as peer:
        echo.send(f"FROM ADDRESS@{peer.endpoint.host_port}")
        echo.send(f"FROM ADDRESS@{peer.endpoint.host_port}", "ARGUMENT")
        called = [peer.conversation(index).request.called for index in (0, 1)]
    assert called == ["FROM ADDRESS", "ARGUMENT"]


@pytest.mark.parametrize(
    ("options", "announced"),
    [([], 16382), (["--max-pdu", "0"], 0), (["--max-pdu", "16"], 16), (["--max-pdu", "4294967295"], 4294967295)],
)
def test_the_maximum_pdu_length_is_announced(
    options: list[str], announced: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sent(capsys, *options).request.max_length == announced


@pytest.mark.parametrize(
    ("names", "uids"),
    [
        (["implicit"], (IMPLICIT,)),
        (["explicit"], (EXPLICIT,)),
        (["deflated"], (DEFLATED,)),
        (["big-endian"], (BIG_ENDIAN,)),
        ([JPEG], (JPEG,)),
        (["explicit", "implicit", JPEG], (EXPLICIT, IMPLICIT, JPEG)),
    ],
)
def test_the_transfer_syntaxes_are_proposed_in_order(
    names: list[str], uids: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for name in names for word in ("--transfer-syntax", name)]
    (context,) = sent(capsys, *options).request.contexts
    assert (context.id, context.transfer_syntaxes) == (1, uids)


def test_the_request_says_who_we_are_and_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    items = sent(capsys).request.user_items
    assert set(items) == {0x51, 0x52, 0x55}
    assert items[0x52].startswith(b"2.25.")
    assert items[0x55].startswith(b"DICOM_ECHO_")
    assert len(items[0x52]) <= 64
    assert len(items[0x55]) <= 16


def test_the_command_set_is_a_c_echo_rq_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = sent(capsys, "-id", "258")
    (command,) = conversation.commands
    assert command == {
        rawpeer.GROUP_LENGTH: b"\x38\0\0\0",
        rawpeer.AFFECTED_SOP_CLASS_UID: b"1.2.840.10008.1.1\0",
        rawpeer.COMMAND_FIELD: b"\x30\0",
        rawpeer.MESSAGE_ID: b"\2\1",
        rawpeer.DATA_SET_TYPE: b"\1\1",
    }
    (pdv,) = conversation.pdvs
    assert (pdv.context_id, pdv.control) == (1, rawpeer.COMMAND | rawpeer.LAST)


def test_the_whole_echo_is_three_pdus_and_ends_with_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = sent(capsys)
    assert conversation.types == [rawpeer.A_ASSOCIATE_RQ, rawpeer.P_DATA_TF, rawpeer.A_RELEASE_RQ]
    assert bytes(conversation.raw).endswith(rawpeer.release_rq())
    assert not rawpeer.split_pdus(bytes(conversation.raw))[1]


def test_the_counter_counts_on_the_wire() -> None:
    with RawPeer() as peer:
        own = echo.Counter()
        own.count = 65533
        for _ in range(3):
            echo.send(peer.address, message_id=own)
        ids = [peer.conversation(index).message_ids for index in range(3)]
    assert ids == [[65534], [65535], [1]]


# --- The peer's limit (PS3.8 D.1) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 0, 1, 6, 7, 8, 9, 12, 13, 16, 50, 73, 74, 75, 128, 16384, 0xFFFFFFFF])
def test_the_request_fits_the_limit_of_the_peer(limit: int | None) -> None:
    with RawPeer(script(accept=rawpeer.associate_ac(max_length=limit))) as peer:
        result = echo.probe(peer.address, message_id=4660)
        assert (result.error, result.ok) == (None, True)
        heard = peer.conversation()
    assert heard.message_ids == [4660]
    assert [pdv.control for pdv in heard.pdvs][-1] == rawpeer.COMMAND | rawpeer.LAST
    assert all(pdv.control == rawpeer.COMMAND for pdv in heard.pdvs[:-1])
    lists = [len(pdu.body) for pdu in heard.pdus if pdu.type == rawpeer.P_DATA_TF]
    if limit is None or limit == 0:
        assert len(lists) == 1
    else:
        assert max(lists) <= max(limit, 8), "no PDU is smaller than a header of 6 and a fragment of 2"
    assert all(len(pdv.data) % 2 == 0 for pdv in heard.pdvs), "fragments have an even length (PS3.8 E.2)"
