"""The Lua scripts, each a file with its contract on top, loaded by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

__all__ = ["Script", "load"]


class Script:
    """One script: its text, and the digest under which a server remembers it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def culprit(self, error: str, keys: Sequence[object]) -> str:
        """Which command of this script an error of the server is about, as far as the error says where it was."""
        line = re.search(r"(?:user_script|f_\w+):(\d+)", error)
        commands: list[bytes] = []
        if line:
            commands = re.findall(rb"redis\.p?call\('(\w+)'", self.text.splitlines()[int(line[1]) - 1])
        shown = (key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys)
        asked = " or ".join(sorted({command.decode() for command in commands})) or "EVALSHA"
        return f"{asked} in script {self.name} of {', '.join(shown)}"


@cache
def load(name: str, plain: bool = False) -> Script:
    """The script ``name``; ``plain`` leaves out the line of flags, which the in-process server does not know."""
    text = files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    if plain and text.startswith("#!"):
        text = text.partition("\n")[2]
    return Script(name, text)
