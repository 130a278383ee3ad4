"""Memory files, and how anything is written here: whole or not at all.

A memory file is a safetensors file with the tensors `frames` and, when there is one, `anchor`, and one JSON text in
its metadata that says the rest. Nothing but tensors and JSON is ever read, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .fingerprint import fingerprint

try:
    import fcntl
except ImportError:  # Windows, which lets nobody remove a file that is open
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FORMAT_VERSION = 1

# One key for all metadata: safetensors writes several in random order, and equal content shall be equal bytes.
_METADATA = "helios"
_TEMPORARY = ".tmp"

# What a name may not be on one system or another; files are carried from one to the other.
_NAME_BYTES = 255
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\.|$)", re.IGNORECASE)
# What a name grows by while its file is written: see `written_atomically`.
UNFINISHED_BYTES = len("..00112233.tmp")

# A player or a virus scanner has the file open (Windows); most let go of it within a moment.
_HELD = (errno.EACCES, errno.EPERM, errno.EBUSY)
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)


class StorageError(ValueError):
    """A file that is not what it should be. The message names it, says why, and what to do."""


# Writing whole or not at all


@contextmanager
def written_atomically(path: Path, *, precious: bool = False) -> Iterator[Path]:
    """Give the path of a temporary file to write; it takes the place of `path` when the block ends.

    A crash at any moment leaves at `path` what was there before, or the whole new file; after a power cut, too, since
    file and folder are flushed to the disk. When the block raises, the temporary file is removed. What a killed
    process left behind is named so that `remove_unfinished` finds it. A `precious` file that cannot be put at `path`
    (another program has the older one open) is kept beside it under a name that the OSError gives.
    """
    unfinished = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{_TEMPORARY}{path.suffix}")
    try:
        with _marked_as_mine(unfinished):
            yield unfinished
        with unfinished.open("rb+") as stream:
            flush(stream.fileno())
        _put(unfinished, path, precious)
        _flush_folder(path.parent)
    finally:
        remove_file(unfinished)


def _put(unfinished: Path, path: Path, precious: bool) -> None:
    try:
        patiently(os.replace, unfinished, path)
    except OSError as fault:
        if not precious:
            raise
        kept = path.with_name(f"{path.stem}.{secrets.token_hex(2)}{path.suffix}")
        patiently(os.replace, unfinished, kept)
        raise OSError(
            fault.errno, f"{path} cannot be written ({fault.strerror}); the whole file is kept beside it as {kept.name}"
        ) from fault


def remove_unfinished(folder: Path, stem: str = "*") -> None:
    """Remove what killed processes left half-written in `folder`, for files of that stem or all. What another process
    is writing stays, on systems that can say."""
    name = stem if stem == "*" else glob.escape(stem)
    for leftover in folder.glob(f".{name}.*{_TEMPORARY}*"):
        if not _is_being_written(leftover):
            remove_file(leftover)


@contextmanager
def _marked_as_mine(unfinished: Path) -> Iterator[None]:
    """Create the file and hold a lock on it, which the system takes back when this process dies."""
    if fcntl is None:
        yield
        return
    with unfinished.open("xb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:  # a file system without locks
            logger.debug("%s cannot be locked: %s", unfinished, fault)
        yield


def _is_being_written(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True  # finished, or removed, meanwhile
    except OSError as fault:
        return fault.errno in (errno.EAGAIN, errno.EACCES)
    return False


def patiently(act: Callable[..., Result], *values: Any) -> Result:
    """Call `act(*values)`, and again for a second and a half while somebody else has the file open; then raise its
    OSError."""
    for seconds in _RETRY_SECONDS:
        try:
            return act(*values)
        except FileNotFoundError:
            raise
        except OSError as fault:
            if fault.errno not in _HELD:
                raise
            logger.debug("%s; trying again in %s s", fault, seconds)
            time.sleep(seconds)
    return act(*values)


def remove_file(path: Path) -> bool:
    """Remove a file that nobody needs. Whether it is gone: one that somebody has open stays, with a warning."""
    try:
        patiently(path.unlink, True)
    except OSError as fault:
        logger.warning("%s is left behind, as another program has it open: %s", path, fault)
        return False
    return True


def flush(descriptor: int) -> None:
    """Flush a file to the disk, as far as its file system can: some shared and virtual ones refuse to be asked."""
    try:
        os.fsync(descriptor)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.debug("the file system does not flush: %s", fault)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can: Windows does so by itself and opens no folders."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError as fault:  # a folder that may be written and not read
        logger.debug("%s cannot be flushed: %s", folder, fault)
        return
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


# Names


def check_file_name(name: str, *, room: int = 0) -> None:
    """Raise ValueError unless a file or folder may have this name on every system, with `room` more bytes at its end.

    Windows takes none of < > : " | ? *, no name that ends in a dot or space, and none of its devices (CON, NUL, COM1);
    no system takes more than 255 bytes.
    """
    shown = name if len(name) <= 60 else f"{name[:40]}..."
    found = _FORBIDDEN.search(name)
    if found:
        raise ValueError(
            f"the name {shown!r} has the character {found[0]!r}, which not every system takes in a file's name; "
            "use a letter, a digit, '_' or '-' in its place"
        )
    if _DEVICES.match(name):
        raise ValueError(f"the name {shown!r} stands for a device in Windows; choose another, such as '{shown}_1'")
    if not name.strip(" .") or name[-1] in " .":
        raise ValueError(f"the name {shown!r} ends in a dot or a space, which Windows drops; end it otherwise")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > _NAME_BYTES - room:
        raise ValueError(
            f"the name {shown!r} is {size} bytes long (letters beyond ASCII take 2 to 4 bytes each); at most "
            f"{_NAME_BYTES - room} are possible: shorten it"
        )


def check_new_file(path: Path) -> None:
    """Raise, before any work, what writing the file at `path` would raise after it: ValueError for a name that cannot
    be, FileNotFoundError or NotADirectoryError for its folder."""
    check_file_name(path.name, room=UNFINISHED_BYTES)
    if not path.parent.exists():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {path.parent} is a file")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: there is a folder of that name; give a file's name")


# Tensors with facts


def save_tensors(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able `facts` as one safetensors file of this `kind`, with a checksum over the tensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"kind": kind, "version": FORMAT_VERSION, "checksum": fingerprint(tensors), **facts}
    with written_atomically(path) as unfinished:
        # Not save_file, whose errors hide that the disk is full.
        unfinished.write_bytes(save(tensors, metadata={_METADATA: json.dumps(header, sort_keys=True)}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or StorageError for a file that is damaged, of another kind, or of a newer version.
    """
    with _opened(path, kind) as (file, facts):
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if facts.get("checksum") != fingerprint(tensors):
        raise StorageError(f"{path} is damaged: its content does not match its checksum. Copy or make it again")
    return tensors, facts


def check_tensors(path: Path, kind: str) -> None:
    """Raise as `load_tensors` does, for all that can be seen without reading the tensors (cut off, of another kind)."""
    with _opened(path, kind):
        pass


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its facts."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _check_facts(path, kind, file.metadata())
    except SafetensorError as fault:
        raise StorageError(
            f"{path} is cut off, damaged, or not a safetensors file ({fault}). Copy or make it again"
        ) from fault


def _check_facts(path: Path, kind: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {})[_METADATA])
        found, version = facts["kind"], facts["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StorageError(f"{path} is no Helios {kind} file: it is safetensors, but not written by Helios") from None
    if found != kind:
        raise StorageError(f"{path} is a Helios {found} file; a {kind} file is needed")
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path} has version {version!r} of the file format; this program reads {FORMAT_VERSION}. Update it"
        )
    return facts
