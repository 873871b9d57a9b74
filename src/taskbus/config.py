"""The settings of a router: frozen, checked once, with the password out of sight."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from taskbus.errors import ConfigError

__all__ = [
    "RouterConfig",
    "check_count",
    "check_name",
    "check_reach",
    "check_timeout",
    "encodable",
    "hide_password",
    "split_labels",
]

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
_LABEL = re.compile(r"[A-Za-z0-9_.:@/=+-]{1,128}\Z")
_SCHEME = re.compile(r"(?i)[a-z][a-z0-9+.-]*:/+")
_USER = re.compile(r"([A-Za-z0-9_.-]*):")
_SECRET = re.compile(r"(?i)([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)[^&]*")
_MIB = 1024 * 1024
_NUMBER = (int, float)  # `int | float`, made anew at each check, takes 0.3 us


def check_name(what: str, name: object) -> str:
    """Return ``name`` if it can name a run, a node or an event, else raise ``ConfigError`` that shows it."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(
            f"{what} must be 1 to 128 characters of A-Z a-z 0-9 _ . : -, not {_short(name)}", what=what, value=name
        )
    return name


def check_count(what: str, count: object, least: int) -> int:
    """Return ``count`` if it is a whole number of at least ``least``, else raise ``ConfigError`` that shows it."""
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ConfigError(f"{what} must be a whole number of at least {least}, not {_short(count)}")
    return count


def check_reach(only_remote: bool, only_local: bool) -> None:
    """Refuse an event that would reach nobody."""
    if only_remote and only_local:
        raise ConfigError("only_remote and only_local together reach nobody; give one of them")


def check_timeout(timeout: object, what: str = "timeout") -> float:
    """Return ``timeout`` if it is a number of seconds of at least 0, else raise ``ConfigError`` that shows it."""
    if isinstance(timeout, bool) or not isinstance(timeout, _NUMBER) or not timeout >= 0:
        raise ConfigError(f"{what} must be a number of seconds of at least 0, not {_short(timeout)}")
    return timeout


def encodable(text: str) -> str:
    """``text`` with whatever is no character, as half a surrogate pair, written out."""
    return text.encode(errors="backslashreplace").decode()


def split_labels(labels: Iterable[str] | str) -> frozenset[str]:
    """Labels from an iterable or from a comma-separated string, each checked."""
    given = labels.split(",") if isinstance(labels, str) else list(labels)
    clean = [label.strip() if isinstance(label, str) else label for label in given]
    for label in clean:
        if not isinstance(label, str) or (label and not _LABEL.match(label)):
            raise ConfigError(
                f"a label must be 1 to 128 characters of A-Z a-z 0-9 _ . : @ / = + -, not {_short(label)}", label=label
            )
    return frozenset(label for label in clean if label)


def hide_password(url: str) -> str:
    """``url`` with the password replaced by ``***``, for messages, logs and ``repr``."""
    # By the text alone: with a character that should have been escaped, a password is another part of a parsed URL.
    scheme = _SCHEME.match(url)
    begin = scheme.end() if scheme else 0
    login, at, rest = url[begin:].rpartition("@")
    user = _USER.match(login)
    shown = (f"{user[1]}:***@" if user else "***@") if at else ""
    return url[:begin] + shown + _SECRET.sub(r"\1***", rest)


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Everything a router needs to know; durations in seconds, sizes in bytes.

    ``retention_*`` bound what the run keeps for each event name: so many events, so old, so many bytes (large payloads
    included); the first bound that is reached counts. ``op_timeout`` bounds any one call, retries included.
    """

    url: str = ""
    run_id: str = "default"
    node_id: str | None = None
    labels: frozenset[str] = frozenset()
    heartbeat: float = 1.5
    lease: float = 8.0
    connect_timeout: float = 2.0
    op_timeout: float = 5.0
    start_timeout: float | None = None
    stop_timeout: float = 2.0
    block: float = 4.0
    retention_events: int = 10_000
    retention_seconds: float = 3600.0
    retention_bytes: int = 256 * _MIB
    finish_ttl: float = 86_400.0
    run_ttl: float = 86_400.0
    outbox_events: int = 10_000
    outbox_bytes: int = 64 * _MIB
    blob_threshold: int = 256 * 1024
    max_payload: int = 256 * _MIB
    ack: str = "memory"
    codec: str = "orjson"
    finish_on_error: bool = False
    record: bool = False
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_name("run_id", self.run_id)
        if self.node_id is not None:
            check_name("node_id", self.node_id)
        object.__setattr__(self, "labels", split_labels(self.labels))
        for name in ("heartbeat", "lease", "connect_timeout", "op_timeout", "stop_timeout", "block"):
            self._check_number(name, 0.0)
        for name in ("retention_seconds", "finish_ttl", "run_ttl"):
            self._check_number(name, 0.001)
        for name in (
            "retention_events",
            "retention_bytes",
            "outbox_events",
            "outbox_bytes",
            "blob_threshold",
            "max_payload",
        ):
            self._check_number(name, 1)
        if self.lease < 2 * self.heartbeat:
            raise ConfigError(f"lease ({self.lease} s) must be at least two heartbeats ({self.heartbeat} s each)")
        if self.max_payload > 512 * _MIB:
            raise ConfigError(
                f"max_payload must be at most 512 MiB, the limit of a Redis value, not {self.max_payload}"
            )
        if not re.fullmatch(r"memory|replicas:[1-9][0-9]*", self.ack):
            raise ConfigError(f"ack must be 'memory' or 'replicas:N', not {self.ack!r}")
        if self.codec not in ("orjson", "pickle"):
            raise ConfigError(f"codec must be 'orjson' or 'pickle', not {self.codec!r}")
        if self.codec == "pickle" and not self.secret:
            raise ConfigError("codec='pickle' needs a secret (TASKBUS_SECRET): an unsigned pickle is never loaded")

    def _check_number(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
            raise ConfigError(f"{name} must be a finite number of at least {least:g}, not {_short(value)}")

    @property
    def max_frame(self) -> int:
        """The largest frame that is taken from the bus: any event that may be emitted, and small ones gathered."""
        # Those make frames of 256 kB, half as much again in commas where they are tiny, and the length of the last one.
        return max(self.max_payload, self.blob_threshold + 512 * 1024) + 64 * 1024

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return hide_password(self.url)

    @property
    def reset_command(self) -> str:
        """What a shell takes to use the run's name again; with the URL, unless the environment has one."""
        where = "" if os.environ.get("TASKBUS_URL") else f" --url {self.shown_url}"
        return f"taskbus reset {self.run_id}{where}"

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr and getattr(self, f.name) != f.default}
        shown["url"] = self.shown_url
        return f"RouterConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def from_env(cls, **given: Any) -> RouterConfig:
        """Settings from ``TASKBUS_URL``, ``_RUN_ID``, ``_LABELS``, ``_NODE_ID`` and ``_SECRET``.

        What is given and not None wins.
        """
        for name in given:
            if name not in cls.__dataclass_fields__:
                known = ", ".join(sorted(cls.__dataclass_fields__))
                raise ConfigError(f"unknown setting {name!r} of a router; known: {known}")
        settings: dict[str, Any] = {}
        for name in ("url", "run_id", "node_id", "labels", "secret"):
            if value := os.environ.get(f"TASKBUS_{name.upper()}"):
                settings[name] = value
        settings.update((name, value) for name, value in given.items() if value is not None)
        if isinstance(secret := settings.get("secret"), str):
            settings["secret"] = secret.encode()
        settings["labels"] = split_labels(settings.get("labels", ()))
        return cls(**settings)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
