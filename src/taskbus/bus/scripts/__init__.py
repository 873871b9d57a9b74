"""The Lua scripts, each a file with its contract on top, loaded by name."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

__all__ = ["Script", "load"]


class Script:
    """One script: its text, and the digest under which a server remembers it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


@cache
def load(name: str, plain: bool = False) -> Script:
    """The script ``name``; ``plain`` leaves out the line of flags, which the in-process server does not know."""
    text = files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    if plain and text.startswith("#!"):
        text = text.partition("\n")[2]
    return Script(name, text)
