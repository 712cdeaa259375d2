"""What stays behind: files left open, threads left running; and what runs out.

with nothing_left_behind():
    probe(...)

Compared is what is new, not how much there is: what an earlier test left may go meanwhile.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FILES = Path("/dev/fd")


def open_files() -> set[tuple[str, str]]:
    """The open file descriptors of this process, each with what it stands for; none where the system hides them."""
    found = set()
    for file in FILES.iterdir() if FILES.is_dir() else ():
        with contextlib.suppress(OSError):  # the listing itself was open, too
            found.add((file.name, str(file.readlink())))
    return found


@contextlib.contextmanager
def nothing_left_behind(patience: float = 0.0) -> Iterator[None]:
    """Fail if there is a new open file or thread after the block; give those of a peer in this process time to end."""
    files, threads = open_files(), threading.enumerate()
    yield
    end = time.monotonic() + patience
    while (new := [each for each in threading.enumerate() if each not in threads]) or open_files() - files:
        if time.monotonic() > end:
            break
        time.sleep(0.005)
    assert new == []
    assert open_files() - files == set()


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Every file descriptor that this process may have is in use."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(file.name) for file in FILES.iterdir()) + 8, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in held:
            os.close(each)
