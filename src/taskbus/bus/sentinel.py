"""Connections to the primary that Sentinel names now: each one asks anew, so that a failover is followed."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from taskbus.errors import ConfigError

__all__ = ["ASK_TIMEOUT", "NO_RETRY", "PrimaryConnection", "parse_sentinel_url"]

ASK_TIMEOUT = 0.5
"""Seconds for one sentinel: a dead one at the head of the list must not cost the whole attempt."""


class _NoRetry(Retry):
    """One for all connections: redis-py copies an ordinary one for each, a tenth of what the start of a node costs."""

    def __deepcopy__(self, memo: object) -> _NoRetry:
        return self


NO_RETRY = _NoRetry(NoBackoff(), 0)


def parse_sentinel_url(url: str, shown: str) -> dict[str, Any]:
    """``redis+sentinel://[user:password@]host:port,host:port/service/db`` as settings of a connection.

    Login and password are those of the servers; those of the sentinels come as ``?sentinel_password=``.
    """
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    sentinels = []
    for address in hosts.split(","):
        host, _, port = address.rpartition(":") if ":" in address else (address, "", "26379")
        if not host or not port.isdigit():
            raise ConfigError(f"a sentinel must be given as host:port (given: {shown})")
        sentinels.append((host.strip("[]"), int(port)))
    if not service or (db and not db.isdigit()):
        raise ConfigError(f"the URL must end with /service or /service/db (given: {shown})")
    user, _, password = login.partition(":")
    given = parse_qs(parts.query)
    if unknown := sorted(given.keys() - {"sentinel_password"}):
        raise ConfigError(f"the URL of the bus knows no option {unknown[0]!r} (given: {shown})")
    return {
        "sentinels": sentinels,
        "service": unquote(service),
        "db": int(db or 0),
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "sentinel_password": given.get("sentinel_password", [None])[0],
    }


class PrimaryConnection(redis.Connection):
    """A connection to whatever is the primary of ``service`` at the moment it connects."""

    def __init__(
        self, sentinels: list[tuple[str, int]], service: str, sentinel_password: str | None = None, **settings: Any
    ) -> None:
        self._sentinels = sentinels
        self._service = service
        self._sentinel_password = sentinel_password
        super().__init__(**settings)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        self.host, self.port = self._primary()
        return super()._connect()  # type: ignore[no-untyped-call]

    def _primary(self) -> tuple[str, int]:
        reasons = []
        for position, (host, port) in enumerate(self._sentinels):
            try:
                address = self._ask(host, port)
            except driver.RedisError as error:
                is_other = "unknown command" in str(error).lower()
                reasons.append(f"{host}:{port} is no sentinel" if is_other else f"{host}:{port}: {error}")
                continue
            if address:
                # The one that answered is asked first next time; the list is shared by all connections to this bus.
                self._sentinels.insert(0, self._sentinels.pop(position))
                return address[0].decode(), int(address[1])
            reasons.append(f"{host}:{port} knows no service {self._service!r}")
        raise driver.ConnectionError(f"no sentinel names the primary of {self._service!r}: {'; '.join(reasons)}")

    def _ask(self, host: str, port: int) -> list[bytes] | None:
        connection: Any = redis.Connection(  # type: ignore[no-untyped-call]
            host=host,
            port=port,
            password=self._sentinel_password,
            socket_timeout=ASK_TIMEOUT,
            socket_connect_timeout=ASK_TIMEOUT,
            retry=NO_RETRY,
            protocol=2,
            driver_info=None,
        )
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            return connection.read_response()  # type: ignore[no-any-return]
        finally:
            connection.disconnect()
