"""Files that are whole whatever happens: replaced at once, JSON lines with a torn end, locks."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let the block write a new version of a file, which replaces the old one at its end.

    Readers see the old file or the new one, never half of it. If the block raises, the old file
    stays as it was.

    Args:
        path: The file. Its folder must exist.

    Yields:
        A path in the same folder, with the same suffix, that the block has to write.
    """
    new = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that its readers see the old content or the new one.

    Args:
        path: The file. Its folder must exist.
        content: All of the new content.
    """
    with replacing(path) as new:
        new.write_bytes(content)


def ends_with_a_line(file: BinaryIO) -> bool:
    """Return whether an open file is empty or ends with a newline; move to its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    return file.read(1) in (b"", b"\n")


def append_json_lines(path: Path, records: Iterable[Any], *, sync: bool = False) -> None:
    """Append records to a file, a line each, in a single write.

    If the last line was torn, by a full disk or a power cut, it is ended first: it stays a line of
    its own, which :func:`parse_json_lines` leaves out.

    Args:
        path: The file, which is created where it is missing.
        records: What ``json.dumps`` takes.
        sync: Wait until file and folder are on the disk.
    """
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    with path.open("ab+") as file:
        if not ends_with_a_line(file):
            lines = b"\n" + lines
        file.write(lines)
        if sync:
            file.flush()
            os.fsync(file)
    if sync:
        _sync_folder(path.parent)


def parse_json_lines(lines: Iterable[str] | Iterable[bytes]) -> Iterator[Any]:
    """Yield the values of JSON lines; a line that was torn is left out."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def drop_torn_line(file: BinaryIO) -> None:
    """Cut off what follows the last newline of a file that is open for reading and writing."""
    if ends_with_a_line(file):
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def file_lock(path: Path, *, exclusive: bool = True, wait: bool = True) -> Iterator[bool]:
    """Hold the kernel's lock of a file inside the block; it is freed when the process dies.

    Unlike filelock's, it can be shared, and it takes microseconds.

    Args:
        path: The file that is locked, which is created where it is missing.
        exclusive: Keep everybody else away; else only those who want it exclusively.
        wait: Wait for the lock; else give up at once.

    Yields:
        Whether the lock was obtained.
    """
    operation = fcntl.LOCK_SH
    if exclusive:
        operation = fcntl.LOCK_EX
    if not wait:
        operation |= fcntl.LOCK_NB
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
