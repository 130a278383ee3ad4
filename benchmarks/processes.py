"""A measurement in a process of its own: neither its memory nor its failure is anybody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ERROR_LINES = 12


class FailedError(RuntimeError):
    """A process ended badly. The message holds the end of what it wrote."""


def answer_of(
    module: str, arguments: Sequence[str], *, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> Any:
    """Run `python -m module arguments` and return what its last line says in JSON. Raises FailedError."""
    done = subprocess.run(
        [python, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reported = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-ERROR_LINES:])
        raise FailedError(f"{module} ended with code {done.returncode}:\n{reported}")
    return json.loads(done.stdout.splitlines()[-1])
