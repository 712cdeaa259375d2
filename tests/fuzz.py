"""Good PDU streams, spoilt: seeded, so that every run makes the same ones.

python -O tests/fuzz.py 2000    # feeds them to the dialogue; prints surprises, and a digest of the verdicts
"""

from __future__ import annotations

import hashlib
import random
import sys
import traceback
from collections.abc import Iterable

import rawpeer

import dicom_echo

REQUEST = dicom_echo._Request("127.0.0.1:104", "ANY-SCP", "ECHOSCU")

RSP = rawpeer.echo_rsp_command(1)
COMMENTED = rawpeer.echo_rsp_command(1, 0x0122, error_comment="no such class")
GOOD_STREAMS = [
    rawpeer.GOOD_STREAM,
    rawpeer.associate_ac([(1, 3, None)]),
    rawpeer.associate_ac([(3, 0, rawpeer.EXPLICIT_VR_LITTLE_ENDIAN), (1, 0, rawpeer.IMPLICIT_VR_LITTLE_ENDIAN)])
    + rawpeer.command_pdu(COMMENTED)
    + rawpeer.release_rq(),
    rawpeer.associate_ac(extra_user_items=rawpeer.item(0x53, b"\0\1\0\1") + rawpeer.item(0x59, b"\0\0"))
    + rawpeer.p_data(rawpeer.fragments(RSP, 20))
    + rawpeer.abort(2, 2),
    rawpeer.GOOD_ACCEPT + b"".join(rawpeer.p_data([pdv]) for pdv in rawpeer.fragments(RSP, 7)) + rawpeer.GOOD_RELEASE,
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


def outcome(pieces: Iterable[bytes]) -> tuple[object, ...]:
    """What a dialogue makes of a stream that comes in pieces and then ends: its events, and its error if one comes.

    An exception that is not an EchoError leaves.
    """
    dialogue = dicom_echo._Dialogue(REQUEST)
    waiting = iter([*filter(None, pieces), b""])
    events: list[object] = []
    try:
        for step in (dialogue.associate, lambda: dialogue.echo(1), dialogue.release):
            step()
            while (event := dialogue.next_event()) is None:
                dialogue.receive_data(next(waiting))
            events.append(event)
    except dicom_echo.EchoError as error:
        facts = {name: fact for name, fact in error.facts.items() if name != "received"}  # as far as it came
        return (*events, type(error), str(error), error.detail, facts)
    return tuple(events)


def main(count: int) -> None:
    """Feed spoilt streams to the dialogue, whole and byte by byte, with each of pydicom's ways to read values."""
    from pydicom import config

    for mode in (config.IGNORE, config.WARN, config.RAISE):
        config.settings.reading_validation_mode = mode
        surprises, ends, digest = 0, set[object](), hashlib.sha256()
        for seed in range(count):
            stream = spoilt(seed)
            try:
                verdict = outcome([stream])
                digest.update(repr(verdict).encode())
                ends.update(part for part in verdict if isinstance(part, type))
                if mode == config.IGNORE and verdict != outcome([bytes([byte]) for byte in stream]):
                    raise AssertionError("the pieces matter")  # not an assert: they may be off
            except Exception:  # just what is looked for
                surprises += 1
                print(f"seed {seed}: {stream.hex()}\n{traceback.format_exc()}")
        print(f"{count} streams, {surprises} surprises, {len(ends)} kinds of error, {digest.hexdigest()}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
