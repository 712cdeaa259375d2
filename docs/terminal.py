"""Draw README's terminal from a real run of the command against a real peer: `terminal.py [FILE]`."""

from __future__ import annotations

import contextlib
import html
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from pynetdicom import AE

PORT, WIDTH, LINE = 11112, 100, 20
COMMANDS = [
    f"dicom-echo STRICT@localhost:{PORT}",
    f"dicom-echo WRONG@localhost:{PORT}",
    f"dicom-echo -v STRICT@localhost:{PORT}",
]
COLOURS = {"31": "#ff7b72", "32": "#7ee787"}


def run(command: str) -> str:
    """What the command prints on a terminal of this width."""
    ours, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [sys.executable, "-m", "dicom_echo", *command.split()[1:]],
        env=environment,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    ):
        os.close(terminal)
        printed = b""
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while piece := os.read(ours, 1 << 16):
                printed += piece
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def draw(lines: list[str]) -> str:
    """An SVG of these lines; their colours are those of the terminal."""
    rows = []
    for number, line in enumerate(lines, 1):
        text = re.sub(
            "\x1b\\[(\\d+)m(.*?)\x1b\\[0m",
            lambda match: f'<tspan fill="{COLOURS[match[1]]}">{match[2]}</tspan>',
            html.escape(line, quote=False),
        )
        rows.append(f'<text x="16" y="{16 + number * LINE}" xml:space="preserve">{text}</text>')
    size = f'width="{WIDTH * 8.5 + 32:.0f}" height="{len(lines) * LINE + 36}"'
    style = 'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="#e6edf3"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect width="100%" height="100%" rx="8" '
        f'fill="#0d1117"/>\n' + "\n".join(rows) + "\n</svg>\n"
    )


def main() -> None:
    """Run each command and draw all that it prints."""
    peer = AE("STRICT")
    peer.require_called_aet = True
    peer.add_supported_context("1.2.840.10008.1.1")
    server = peer.start_server(("127.0.0.1", PORT), block=False)
    try:
        lines = [line for command in COMMANDS for line in (f"$ {command}", *run(command).splitlines(), "")]
    finally:
        server.shutdown()
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("terminal.svg")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(draw(lines[:-1]), encoding="utf-8")


if __name__ == "__main__":
    main()
