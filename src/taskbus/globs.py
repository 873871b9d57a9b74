"""Label globs: which labels they mean, said and matched in one place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from taskbus.errors import ConfigError
from taskbus.types import Labels

__all__ = ["match_globs", "parse_globs"]

_GLOB = re.compile(r"[A-Za-z0-9_.:@/=+*?\[\]!^-]{1,128}\Z")
_MOST = 100


def parse_globs(patterns: Labels) -> tuple[str, ...] | None:
    """The globs of ``only_to`` or of a query: one, several, or a string of several; ``None`` means every node.

    Nothing else does: a list that turns out empty is a ``ConfigError``, never everybody.
    """
    if patterns is None:
        return None
    if isinstance(patterns, str):
        return _parse((patterns,))
    try:
        return _parse(tuple(patterns))
    except TypeError:
        raise ConfigError(f"label globs must be strings, not {patterns!r}") from None


@lru_cache(1000)
def _parse(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError
    globs = tuple(glob.strip() for pattern in patterns for glob in pattern.split(","))
    if not globs or len(globs) > _MOST:
        raise ConfigError(f"{len(globs)} label globs were given; 1 to {_MOST} are taken, and None reaches every node")
    for glob in globs:
        if not _GLOB.match(glob):
            raise ConfigError(
                "a label glob must be 1 to 128 characters of A-Z a-z 0-9 _ . : @ / = + - and * ? [ ] ! ^, "
                f"not {glob[:80]!r}",
                glob=glob,
            )
    return globs


def match_globs(labels: Iterable[str], globs: tuple[str, ...] | None) -> bool:
    """Whether one of the globs matches one of the labels; ``None`` matches always."""
    return globs is None or any(fnmatchcase(label, glob) for label in labels for glob in globs)
