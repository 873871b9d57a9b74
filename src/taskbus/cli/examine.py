"""The checks of ``taskbus doctor``."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from taskbus.bus.packing import Arg, pack
from taskbus.bus.policy import check_version
from taskbus.bus.wire import Wire
from taskbus.errors import BusError, ConfigError

if TYPE_CHECKING:
    from taskbus.bus.guest import Guest

__all__ = ["COMMANDS", "Finding", "examine"]

_MIB = 1024 * 1024
_CONNECTIONS = 5  # of one node: calls, writer, reader, payloads, channels
_PROBE_TTL = 10_000


class Finding(NamedTuple):
    """One line: how it is, what was looked at, and what it means."""

    word: Literal["ok", "note", "bad", "?"]
    what: str
    text: str


def examine(guest: Guest) -> Iterator[Finding]:
    """Every check that can be made, in order; ends early where nothing further can be known."""
    with_secret = "and only frames signed with TASKBUS_SECRET are taken" if guest.config.secret else ""
    yield Finding("ok", "url", f"{guest.config.shown_url}, run {guest.config.run_id!r}")
    try:
        yield _reach(guest)
        yield _version(guest)
        yield from _rights(guest)
        info = _info(guest)
        if not info:
            yield Finding("?", "settings", "INFO is refused: persistence, eviction, memory and role are not known")
        else:
            yield from (_role(info), _persistence(guest, info), _eviction(info), _memory(info), _clients(info))
        yield _clock(guest)
    except (BusError, ConfigError) as error:
        yield Finding("bad", "reachable", str(error))
        return
    finally:
        guest.close()
    if with_secret:
        yield Finding("ok", "secret", f"TASKBUS_SECRET is set, {with_secret}")
    else:
        yield Finding("note", "secret", "TASKBUS_SECRET is not set: whoever may write to this Redis can emit")


def _reach(guest: Guest) -> Finding:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        [answer] = guest.calls.each([(b"TIME",)])
        times.append(1000 * (time.perf_counter() - begin))
        if isinstance(answer, BusError) and "NOPERM" not in str(answer):  # to refuse it, Redis had to answer
            raise answer
    took = sorted(times)[2]
    text = f"a round trip takes {took:.1f} ms"
    if took > 50:
        return Finding("note", "reachable", f"{text}: every emit takes that long to arrive, though not to return")
    return Finding("ok", "reachable", text)


def _version(guest: Guest) -> Finding:
    check_version(guest.calls, guest.target.where)
    [hello] = guest.calls.each([(b"HELLO",)])
    if isinstance(hello, Exception):
        return Finding("?", "version", "the server does not say")
    fields = dict(zip(hello[::2], hello[1::2], strict=False))
    info = _info(guest)
    name = info.get("server_name") or fields.get(b"server", b"redis").decode()
    version = info.get("valkey_version") or fields.get(b"version", b"?").decode()
    return Finding("ok", "version", f"{name} {version}; 7.0 or newer is needed")


# Rights --------------------------------------------------------------------------------------------------------------

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("SET", "KEY", "v", "PX", str(_PROBE_TTL)),
    ("GET", "KEY"),
    ("EXISTS", "KEY"),
    ("MGET", "KEY"),
    ("TYPE", "KEY"),
    ("PTTL", "KEY"),
    ("PEXPIRE", "KEY", str(_PROBE_TTL)),
    ("HSET", "KEY:hash", "f", "v"),
    ("PEXPIRE", "KEY:hash", str(_PROBE_TTL)),
    ("HSETNX", "KEY:hash", "f", "v"),
    ("HGET", "KEY:hash", "f"),
    ("HMGET", "KEY:hash", "f"),
    ("HGETALL", "KEY:hash"),
    ("HKEYS", "KEY:hash"),
    ("HDEL", "KEY:hash", "g"),
    ("SADD", "KEY:set", "m"),
    ("PEXPIRE", "KEY:set", str(_PROBE_TTL)),
    ("SISMEMBER", "KEY:set", "m"),
    ("SMEMBERS", "KEY:set"),
    ("SDIFF", "KEY:set"),
    ("SREM", "KEY:set", "n"),
    ("RPUSH", "KEY:list", "v"),
    ("PEXPIRE", "KEY:list", str(_PROBE_TTL)),
    ("LINDEX", "KEY:list", "0"),
    ("LPOP", "KEY:list"),
    ("XADD", "KEY:stream", "*", "f", "v"),
    ("PEXPIRE", "KEY:stream", str(_PROBE_TTL)),
    ("XRANGE", "KEY:stream", "-", "+", "COUNT", "1"),
    ("XREVRANGE", "KEY:stream", "+", "-", "COUNT", "1"),
    ("XREAD", "COUNT", "1", "STREAMS", "KEY:stream", "0"),
    ("XINFO", "STREAM", "KEY:stream"),
    ("XTRIM", "KEY:stream", "MINID", "=", "0"),
    ("EVAL", "return 1", "1", "KEY"),
    ("EVALSHA", "0" * 40, "1", "KEY"),
    ("TIME",),
    ("WAIT", "0", "1"),
    ("PUBLISH", "KEY", "v"),
    ("CLIENT", "TRACKING", "OFF"),
    ("UNLINK", "KEY:hash", "KEY:set", "KEY:list"),
    ("DEL", "KEY", "KEY:stream"),
)
"""Every command that a node sends, alone or from a script, as a probe; ``KEY`` stands for a key of the run."""


def _rights(guest: Guest) -> Iterator[Finding]:
    key = f"{guest.keys.prefix}doctor:{secrets.token_hex(4)}"
    probes: list[tuple[Arg, ...]] = [
        (name, *(word.replace("KEY", key, 1) for word in words)) for name, *words in COMMANDS
    ]
    answers = [*guest.calls.each(probes), _subscribe(guest, key)]
    names = [*(probe[0] for probe in COMMANDS), "SUBSCRIBE"]
    refused: dict[str, str] = {}  # why, by name
    full = None
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, Exception):
            text = str(answer)
            if "NOPERM" in text or "no permissions" in text:
                refused.setdefault(name, _what_is_refused(text))
            elif "maxmemory" in text:
                full = text
    if refused.pop("WAIT", None) is not None:
        yield Finding("note", "acknowledge", 'this user may not WAIT: ack="replicas:n" cannot be used')
    if refused.pop("CLIENT", None) is not None:
        what = "CLIENT TRACKING: an idle node notices up to half a minute late that our keys were changed"
        yield Finding("note", "tracking", f"this user may not {what}")
    if full:
        yield Finding("bad", "space", f"{full}: nothing can be emitted")
    if not refused:
        yield Finding("ok", "rights", f"this user may use all {len(set(names))} commands that a node needs")
        return
    by_reason: dict[str, list[str]] = {}
    for name, why in refused.items():
        by_reason.setdefault(why, []).append(name)
    what = ", ".join(
        ", ".join(found) + (f" (on this run's {why})" if why else "") for why, found in sorted(by_reason.items())
    )
    grant = f"grant ~{guest.keys.prefix}* &{guest.keys.prefix}* and these"
    yield Finding("bad", "rights", f"this user may not: {what}; {grant}")


def _what_is_refused(text: str) -> str:
    """Redis and Valkey say it in other words; the name of a command may hold the word as well."""
    if re.search(r"\bkeys?\b", text):
        return "keys"
    return "channels" if re.search(r"\bchannels?\b", text) else ""


def _subscribe(guest: Guest, channel: str) -> object:
    wire = Wire(guest.target, 2.0)
    try:
        wire.open()
        wire.send([pack(b"SUBSCRIBE", channel)])
        return wire.check(wire.read())
    except BusError as error:
        return error
    finally:
        wire.close()


# Settings ------------------------------------------------------------------------------------------------------------


def _info(guest: Guest) -> dict[str, str]:
    [text] = guest.calls.each([(b"INFO",)])
    if not isinstance(text, bytes):
        return {}
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _role(info: dict[str, str]) -> Finding:
    replicas = int(info.get("connected_slaves", "0"))
    if info.get("role") == "slave":
        return Finding("bad", "role", "this is a replica: it takes no events; name the primary")
    if replicas:
        text = f"primary with {replicas} replicas: a failover may lose the last events; nodes notice and count them"
        return Finding("note", "role", text)
    return Finding("ok", "role", "primary without replicas: there is no failover that could lose events")


def _persistence(guest: Guest, info: dict[str, str]) -> Finding:
    if info.get("aof_enabled") == "1":
        [answer] = guest.calls.each([(b"CONFIG", b"GET", b"appendfsync")])
        policy = answer[1].decode() if isinstance(answer, list) and len(answer) == 2 else "unknown"
        known = {"always": "nothing that was acknowledged", "everysec": "up to a second of events"}
        text = f"append-only log, appendfsync {policy}: a crash of Redis loses {known.get(policy, 'the last events')}"
        return Finding("ok", "persistence", text)
    [answer] = guest.calls.each([(b"CONFIG", b"GET", b"save")])
    if isinstance(answer, list) and len(answer) == 2 and answer[1]:
        text = "snapshots only: a crash of Redis loses all since the last one"
    else:
        text = "no append-only log: a run does not survive a restart of Redis"
    return Finding("note", "persistence", f"{text}; nodes notice, count it and register again")


def _eviction(info: dict[str, str]) -> Finding:
    policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", "0"))
    if policy == "noeviction" or not limit:
        why = "noeviction" if policy == "noeviction" else f"{policy}, but without a limit"
        return Finding("ok", "eviction", f"{why}: Redis drops nothing by itself")
    text = f"{policy}: under pressure Redis drops streams and leases, and no promise holds; use noeviction"
    return Finding("bad", "eviction", text)


def _memory(info: dict[str, str]) -> Finding:
    used, limit = int(info.get("used_memory", "0")), int(info.get("maxmemory", "0"))
    if not limit:
        return Finding("note", "memory", f"{used / _MIB:.0f} MiB used, no maxmemory: the machine's memory is the limit")
    text = f"{used / _MIB:.0f} of {limit / _MIB:.0f} MiB used"
    if used > 0.9 * limit:
        return Finding("bad", "memory", f"{text}: when it is full, emit raises BusUnavailable until there is room")
    return Finding("ok", "memory", text)


def _clients(info: dict[str, str]) -> Finding:
    used, limit = int(info.get("connected_clients", "0")), int(info.get("maxclients", "10000"))
    room = (limit - used) // _CONNECTIONS
    text = f"{used} of {limit} connections in use: room for about {room} more nodes"
    return Finding("ok" if room >= 10 else "note", "clients", text)


def _clock(guest: Guest) -> Finding:
    begin = time.time()
    [answer] = guest.calls.each([(b"TIME",)])
    if isinstance(answer, Exception):
        return Finding("?", "clock", "TIME is refused")
    seconds, micros = answer
    offset = (int(seconds) + int(micros) / 1e6) - (begin + time.time()) / 2
    text = f"Redis' clock is {abs(offset):.3f} s {'ahead of' if offset > 0 else 'behind'} this host's"
    if abs(offset) > 1:
        return Finding(
            "note", "clock", f"{text}: leases and order are Redis' own and hold; times shown here are off by that much"
        )
    return Finding("ok", "clock", text)
