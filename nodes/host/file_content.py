"""What is in a file or folder, as a fingerprint; read again only when the file has changed."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ...helios_core.fingerprint import content_fingerprint, fingerprint

MAX_FILES = 1000


def file_content(path: Path) -> str:
    """Fingerprint of a file. Raises OSError when it cannot be read."""
    path = path.resolve()
    status = path.stat()
    return _content(path, status.st_size, status.st_mtime_ns)


def files_content(paths: Iterable[Path]) -> str:
    """Fingerprint of files that are one model, whatever their names. Raises OSError for one that cannot be read."""
    return fingerprint(sorted(file_content(path) for path in paths))


def folder_content(path: Path) -> str:
    """Fingerprint of the files in a folder and below, by their names. Raises OSError for one that cannot be read, and
    for more than 1000 files."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) > MAX_FILES:
        raise OSError(f"{path} holds more than {MAX_FILES} files")
    return fingerprint([[file.relative_to(path).as_posix(), file_content(file)] for file in files])


@lru_cache(maxsize=4096)
def _content(path: Path, size: int, mtime_ns: int) -> str:
    return content_fingerprint(path)
