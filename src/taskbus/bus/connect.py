"""From a URL to connections: the only place that knows schemes, timeouts and the in-process server."""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis import exceptions as driver
from redis.connection import parse_url

from taskbus.bus.sentinel import ASK_TIMEOUT, NO_RETRY, PrimaryConnection, parse_sentinel_url
from taskbus.config import hide_password
from taskbus.errors import BusDenied, BusError, BusUnavailable, ConfigError

__all__ = ["MEMORY_SERVERS", "Target", "explain"]

MEMORY_SERVERS: dict[str, Any] = {}
"""The in-process servers of ``memory://name``, by name; they live as long as the process."""

_LATER = {
    "redis+cluster": "Redis Cluster is not supported yet; give one server as redis://host:port/db",
}
_AUTHORITY = re.compile("[^/?#]*")
_ESCAPE = "in user and password of a URL, / has to be %2F, ? %3F, # %23, [ %5B and @ %40"


class Target:
    """Where a bus is: makes connections to it, and says in messages where that is."""

    def __init__(self, url: str, connect_timeout: float) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise ConfigError(
                "the URL of the bus must begin with redis://, rediss://, unix:// or memory://, "
                f"not {hide_password(url)!r}"
            )
        if scheme in _LATER:
            raise ConfigError(f"{_LATER[scheme]} (given: {hide_password(url)})")
        if scheme not in ("redis", "rediss", "unix", "redis+sentinel", "memory"):
            raise ConfigError(
                f"unknown scheme {scheme}:// of the bus; known: redis, rediss, unix, redis+sentinel, memory"
            )
        self.in_process = scheme == "memory"
        self.moves = 0
        """How often a server said that it is no primary; connections from before are opened anew."""
        self.shared_socket = scheme != "rediss"  # a TLS session may not be read and written by two threads at once
        self._timeout = connect_timeout
        self._checked: list[redis.Connection] = []  # the one with which the options were checked, until it is used
        self.patience = connect_timeout + 0.1
        """Seconds for the whole of an attempt to connect, with name lookup and login."""
        if self.in_process:
            self.where = f"memory://{rest}"
            self._kind, self._settings = _memory(rest)
            return
        authority = _AUTHORITY.match(rest)[0]  # type: ignore[index]  # it matches anything
        if "@" in rest[len(authority) :] and (scheme != "unix" or (authority and "@" not in authority)):
            raise ConfigError(f"{_ESCAPE} (given: {hide_password(url)})")
        if scheme == "redis+sentinel":
            self._kind, self._settings = PrimaryConnection, parse_sentinel_url(url, hide_password(url))
            hosts = ",".join(f"{host}:{port}" for host, port in self._settings["sentinels"])
            self.where = f"the primary of {self._settings['service']!r} (sentinels {hosts})"
            self.patience += len(self._settings["sentinels"]) * ASK_TIMEOUT
            return
        try:
            self._settings = parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError as error:
            why = _ESCAPE if "@" in url else error  # the error quotes what it takes for a port
            raise ConfigError(f"the URL of the bus makes no sense: {why} (given: {hide_password(url)})") from None
        self._kind = self._settings.pop("connection_class", redis.Connection)
        database = unquote(urlsplit(url).path).strip("/")
        if scheme != "unix" and database and not database.isdecimal():
            raise ConfigError(f"the database in the URL must be a number, as in redis://host:6379/0, not {database!r}")
        self._check_options(url)
        path = self._settings.get("path")
        self.where = path or f"{self._settings.get('host', 'localhost')}:{self._settings.get('port', 6379)}"

    def _check_options(self, url: str) -> None:
        """Refuse options in the URL that the driver would refuse, or stumble over, at every attempt to connect."""
        try:
            self._checked.append(self.connection())
        except (TypeError, ValueError, AttributeError, driver.RedisError) as error:
            names = [name for name in parse_qs(urlsplit(url).query) if f"'{name}'" in str(error)]
            what = f"knows no option {names[0]!r}" if names else f"has options that make no sense: {error}"
            raise ConfigError(f"the URL of the bus {what} (given: {hide_password(url)})") from error

    def connection(self) -> redis.Connection:
        """A new connection, not yet open, that never retries by itself and speaks RESP2.

        RESP2, because nothing of ours needs a map or a push, and because it keeps maintenance notifications off: with
        them redis-py skips the check for stale replies.
        """
        if self._checked:
            with suppress(IndexError):  # another thread has it
                return self._checked.pop()
        return self._kind(  # type: ignore[no-any-return]
            **{
                "socket_connect_timeout": self._timeout,
                "socket_timeout": self._timeout,
                **self._settings,
                "retry": NO_RETRY,  # whatever the URL asks for, as the next two
                "driver_info": None,
                "protocol": 2,
            }
        )


def _memory(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        from fakeredis import FakeRedisConnection, FakeServer
    except ImportError:
        raise ConfigError("memory:// needs the extra 'embedded': pip install 'taskbus[embedded]'") from None
    server = MEMORY_SERVERS.get(name) or MEMORY_SERVERS.setdefault(name, FakeServer(version=(7, 0)))
    return FakeRedisConnection, {"server": server}


# A connection that was cut, which TLS says in words of its own.
_TLS_ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, ssl.SSLWantReadError, TimeoutError)

_DENIED = (
    driver.AuthenticationError,
    driver.AuthorizationError,
    driver.NoPermissionError,
    driver.InvalidResponse,
    driver.DataError,
)

_NO_RIGHT = (  # what the server says without a class of its own in the driver
    "The user executing the script can't",
    "ACL failure in script",
    "unauthenticated",
)

_NO_DATABASE = ("DB index is out of range", "invalid DB index")
_HERE = re.compile(r"localhost:|127\.|\[?::1\b")

_NO_PASSWORD = ("NOAUTH", "Authentication required")


def explain(error: BaseException, where: str, what: str = "") -> BusError:
    """One error of ours for one of the driver: denied is what no waiting heals, everything else is unavailable.

    ``what`` was asked for: command and key.
    """
    if isinstance(error, BusError):
        return error
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    code = getattr(error, "status_code", None)
    if where.startswith("memory://"):
        text = text.replace("localhost:6379", where)  # which the driver believes
    if code and not text.startswith(str(code)):
        text = f"{code} {text}"
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ssl.SSLError) and not isinstance(chain, _TLS_ENDS):
            cause = getattr(chain, "verify_message", None) or chain.reason or chain
            return BusDenied(f"TLS with Redis at {where} failed: {cause}", where=where)
        chain = chain.__cause__ or chain.__context__
    if what:
        text = f"{text} (at {what})"
    if any(words in text for words in _NO_PASSWORD):
        how = "?sentinel_password=PASSWORD" if "no sentinel" in text else "redis://:PASSWORD@HOST"
        return BusDenied(f"Redis at {where} needs a password, as in {how}", where=where)
    if any(words in text for words in _NO_DATABASE):
        return BusDenied(f"Redis at {where} has no such database: {text}", where=where)
    if isinstance(error, _DENIED) or any(words in text for words in _NO_RIGHT):
        return BusDenied(f"Redis at {where} refuses this node: {text}", where=where)
    if "WRONGTYPE" in text:
        return BusDenied(f"a key holds a value of the wrong type in Redis at {where}: {text}", where=where, wrong=True)
    if isinstance(error, driver.OutOfMemoryError) or text.startswith("OOM"):
        return BusUnavailable(f"Redis at {where} is full (maxmemory reached): {text}", where=where, full=True)
    if isinstance(error, driver.ResponseError):
        return BusUnavailable(f"Redis at {where} cannot serve now: {text}", where=where)
    hint = "; is it running?" if "refused" in text and _HERE.match(where) else ""
    return BusUnavailable(f"Redis at {where} cannot be reached: {text}{hint}", where=where)
