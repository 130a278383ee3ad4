"""What is reported of an exception besides its own message."""

from __future__ import annotations


def add_note(fault: BaseException, note: str) -> None:
    """`fault.add_note(note)`, which Python has from 3.11 on; the notes are kept alike in 3.10."""
    if hasattr(fault, "add_note"):
        fault.add_note(note)
    else:
        fault.__notes__ = [*getattr(fault, "__notes__", ()), note]


def in_words(fault: BaseException) -> str:
    """The message and its notes, one a line."""
    return "\n".join([str(fault), *getattr(fault, "__notes__", ())])
