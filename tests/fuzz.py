"""Good PDU streams, spoilt: seeded, so that every run makes the same ones; and what a dialogue makes of any stream.

python -O tests/fuzz.py 2000    # feeds them to the dialogue; prints surprises, and a digest of the verdicts
"""

from __future__ import annotations

import hashlib
import random
import sys
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import rawpeer
from rawpeer import GOOD_ACCEPT, associate_ac, fragments, item, p_data

import dicom_echo
from dicom_echo import Phase

REQUEST = dicom_echo._Request("127.0.0.1:104", "ANY-SCP", "ECHOSCU")
PEER = dicom_echo.Peer(rawpeer.IMPLEMENTATION_CLASS_UID, rawpeer.VERSION_NAME, 16384, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)

RSP = rawpeer.echo_rsp_command(1)
COMMENTED = rawpeer.echo_rsp_command(1, 0x0122, error_comment="no such class")


def p_datas(pdvs: Iterable[tuple[int, int, bytes]]) -> bytes:
    """A PDU for each PDV."""
    return b"".join(p_data([pdv]) for pdv in pdvs)


GOOD_STREAMS = [
    rawpeer.GOOD_STREAM,
    associate_ac([(1, 3, None)]),
    associate_ac([(3, 0, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN), (1, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)])
    + rawpeer.command_pdu(COMMENTED)
    + rawpeer.release_rq(),
    associate_ac(extra_user_items=item(0x53, b"\0\1\0\1") + item(0x59, b"\0\0"))
    + p_data(fragments(RSP, 20))
    + rawpeer.abort(2, 2),
    GOOD_ACCEPT + p_datas(fragments(RSP, 7)) + rawpeer.GOOD_RELEASE,
    rawpeer.associate_rj(1, 1, 7),
    rawpeer.abort(0, 0),
]


def spoilt(seed: int) -> bytes:
    """A good stream with one to four of its bytes or parts flipped, overwritten, cut, doubled or inserted."""
    chance = random.Random(seed)
    stream = bytearray(chance.choice(GOOD_STREAMS))
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(stream) + 1)
        end = min(len(stream), start + chance.choice((1, 1, 2, 4, 8, 32)))
        part = stream[start:end]
        how = chance.choice(("flip", "overwrite", "cut", "double", "insert", "stop"))
        if how == "flip":
            stream[start:end] = bytes(byte ^ 1 << chance.randrange(8) for byte in part)
        elif how == "overwrite":
            stream[start:end] = bytes(chance.choice((0, 1, 4, 0x7F, 0xFF, chance.randrange(256))) for _ in part)
        elif how == "cut":
            del stream[start:end]
        elif how == "double":
            stream[end:end] = part
        elif how == "insert":
            stream[start:start] = chance.randbytes(chance.choice((1, 2, 8, 64)))
        else:
            del stream[start:]
    return bytes(stream)


class Failure(NamedTuple):
    """An EchoError. Of its facts, `received` is left out: it depends on how much had come."""

    error: type[dicom_echo.EchoError]
    phase: Phase | None
    message: str
    detail: str = ""
    facts: tuple[tuple[str, object], ...] = ()
    hint: str = ""  # its first words; the whole is in the reports' golden file

    @classmethod
    def of(cls, error: dicom_echo.EchoError) -> Failure:
        facts = tuple(pair for pair in error.facts.items() if pair[0] != "received")
        return cls(type(error), error.phase, str(error), error.detail, facts, " ".join(error.hint.split()[:5]))


class Heard(NamedTuple):
    """What the events of a stream say."""

    status: int | None = 0
    notes: tuple[str, ...] = ()
    peer: dicom_echo.Peer | None = PEER
    released: bool = False
    failure: Failure | None = None


def hear(pieces: Iterable[bytes], last: Phase = Phase.release, request: dicom_echo._Request = REQUEST) -> Heard:
    """Go through the phases of an echo up to the last; `pieces` come from the peer, and an empty one is the end.

    An exception that is not an EchoError leaves.
    """
    dialogue, story, waiting = dicom_echo._Dialogue(request), dicom_echo._Echo(request, 1, 10), iter(pieces)
    steps = {Phase.associate: dialogue.associate, Phase.echo: lambda: dialogue.echo(1), Phase.release: dialogue.release}
    heard = Heard(None, peer=None)
    try:
        for phase, step in steps.items():
            with story.phase(phase):
                step()
                while (event := dialogue.next_event()) is None:
                    dialogue.receive_data(next(waiting))
            if event.peer:
                heard = heard._replace(peer=event.peer, notes=tuple(event.notes))
            elif event.status is not None:
                heard = heard._replace(status=event.status, notes=(*heard.notes, *event.notes))
            else:
                heard = heard._replace(released=True)
            if phase == last:
                break
    except dicom_echo.EchoError as error:
        heard = heard._replace(failure=Failure.of(error))
    return heard


def main(count: int) -> None:
    """Feed spoilt streams to the dialogue, whole and byte by byte, with each of pydicom's ways to read values."""
    from pydicom import config

    for mode in (config.IGNORE, config.WARN, config.RAISE):
        config.settings.reading_validation_mode = mode
        surprises, ends, digest = 0, set[object](), hashlib.sha256()
        for seed in range(count):
            stream = spoilt(seed)
            try:
                verdict = hear([stream, b""])
                digest.update(repr(verdict).encode())
                ends.update([verdict.failure.error] if verdict.failure else [])
                if mode == config.IGNORE and verdict != hear([*(bytes([byte]) for byte in stream), b""]):
                    raise AssertionError("the pieces matter")  # not an assert: they may be off
            except Exception:  # just what is looked for
                surprises += 1
                print(f"seed {seed}: {stream.hex()}\n{traceback.format_exc()}")
        print(f"{count} streams, {surprises} surprises, {len(ends)} kinds of error, {digest.hexdigest()}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
