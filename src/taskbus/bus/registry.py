"""A node's place on the run: claim, heartbeat, labels, finish, and the removal of the dead."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from taskbus.errors import BusError, Fenced, NodeIdTaken
from taskbus.types import FinishInfo, NodeInfo

if TYPE_CHECKING:
    from taskbus.bus.calls import Calls
    from taskbus.bus.cursor import EntryId
    from taskbus.bus.keys import Keys
    from taskbus.bus.packing import Arg
    from taskbus.bus.scripts import Script
    from taskbus.config import RouterConfig

__all__ = ["Question", "Registry", "finish_from"]

log = logging.getLogger("taskbus")

Forgotten = Literal["nothing", "epoch", "run"]
"""What Redis has lost: with the epoch everything, or that alone."""

_FAREWELL = 0.5
"""Seconds that the labels of a task may keep up its stop."""


class Question(NamedTuple):
    """Something to ask Redis about a key, and whether an answer is as it should be."""

    key: bytes
    command: tuple[Arg, ...]
    is_right: Callable[[Any], bool]


def finish_from(flat: list[bytes]) -> FinishInfo | None:
    """The finish from Redis' flat list of fields; ``None`` when there is none."""
    fields = {name.decode(): value.decode(errors="replace") for name, value in zip(flat[::2], flat[1::2], strict=False)}
    if "node" not in fields:
        return None
    try:
        at = float(fields.get("at", "0"))
    except ValueError:
        at = 0.0
    return FinishInfo(fields["node"], fields.get("reason", ""), at)


class Registry:
    """One life of a node in the registry of its run; ``producer`` is the token of this life."""

    def __init__(self, config: RouterConfig, keys: Keys, calls: Calls, producer: str) -> None:
        self._config = config
        self._keys = keys
        self._calls = calls
        self._lock = threading.Lock()
        self._lease = int(config.lease * 1000)
        self._ttl = int(config.run_ttl * 1000)
        self.producer = producer
        self.node_id = config.node_id or ""
        self.labels = config.labels
        self.stale_labels: frozenset[str] = frozenset()
        """Labels that it has had, and that the registry may still show."""
        self.epoch = b""
        self._joined_at = 0  # ms
        self._ends: dict[str, EntryId] | None = {}  # of the streams at the join; others began later. None: not known
        self.inbox_at = b"0-0"
        self.finish: FinishInfo | None = None
        self.finish_in_redis = False
        self.was_away = False
        self._others: list[bytes] | None = None
        self.role = ""
        self.step = 0

    # Being there -----------------------------------------------------------------------------------------------------

    def claiming(self, script: Script) -> Sequence[Arg]:
        """The command that claims by that ``script``, for who asks more at once."""
        keys, args = self._claim()
        return b"EVALSHA", script.sha, len(keys), *keys, *args

    def _claim(self) -> tuple[Sequence[Arg], Sequence[Arg]]:
        keys = (self._keys.nodes, self._keys.labels, self._keys.epoch, self._keys.finish)
        who = (socket.gethostname(), os.getpid(), self.role, self.step)
        fresh = secrets.token_hex(8)
        args: list[Arg] = [self._keys.prefix, self.node_id, self.producer, self._lease, self._ttl, fresh]
        return keys, [*args, *who, self.epoch, *sorted(self.labels)]

    def claim(self, answer: Any = None) -> Forgotten:
        """Take the id, or register again; returns what Redis has forgotten since the last time.

        ``answer`` is that to :meth:`claiming`, where it was asked already; it is asked again after an error.

        Raises:
            NodeIdTaken: A live node holds the id that was asked for.
            Fenced: Another process holds the id that this node had.
        """
        with self._lock:
            if not isinstance(answer, list):
                answer = self._calls.script("claim", *self._claim())
            if answer[0] == b"TAKEN":
                self._refuse(answer)
            _, node_id, epoch, now, last, finish, is_new, is_same, streams = answer
            forgotten: Forgotten = "nothing"
            if not self.epoch:
                self.node_id = node_id.decode()
                self._joined_at, self._ends = int(now), _ends(streams)
                self.inbox_at = last
            elif epoch != self.epoch:
                forgotten = "epoch" if is_same else "run"
            if forgotten == "run":
                self._ends = {}
            self.was_away = bool(self.epoch) and bool(is_new)
            self.epoch = epoch
            found = finish_from(finish)
            self.finish_in_redis = found is not None
            self.finish = found or self.finish
            return forgotten

    def joined(self, event: str) -> tuple[EntryId, int | None]:
        """Behind which id the stream of ``event`` went on when this node joined, and with which number, where known."""
        if self._ends is None:
            return (self._joined_at, 0), None
        at = self._ends.get(event, (0, 0))
        return at, at[1] + 1

    def _refuse(self, answer: list[Any]) -> None:
        host, pid = answer[1].decode(errors="replace"), answer[2].decode(errors="replace")
        if self.epoch:
            holder = f"belongs to process {pid} on {host} now" if pid else "was taken by another process meanwhile"
            raise Fenced(f"node id {self.node_id!r} {holder}; this node may not write any more", node=self.node_id)
        expires_in = (max(0, answer[4]) + 1) / 1000
        raise NodeIdTaken(
            f"node id {self.node_id!r} of run {self._keys.run_id!r} is held by process {pid} on {host}; "
            f"its lease runs out in {expires_in:.1f} s unless it is renewed",
            node=self.node_id,
            holder=f"{host}:{pid}",
            expires_in=expires_in,
        )

    def leave(self, timeout: float) -> None:
        """Take this node off the registry."""
        keys = (self._keys.nodes, self._keys.labels, self._keys.node(self.node_id), self._keys.inbox(self.node_id))
        args = (self._keys.prefix, self.node_id, self.producer, *sorted(self.labels))
        self._calls.script("leave", keys, args, timeout=timeout)

    def take_labels_off(self) -> None:
        """Have the registry show the labels of now, without ``stale_labels``; those stay stale while Redis is away."""
        stale = self.stale_labels - self.labels
        if not stale:
            return
        keys = (self._keys.node(self.node_id), self._keys.labels)
        kept = ",".join(sorted(self.labels))
        args = (self._keys.prefix, self.node_id, self.producer, kept, *sorted(stale))
        try:
            self._calls.script("unlabel", keys, args, timeout=_FAREWELL)
            self.stale_labels -= stale
        except BusError as error:
            log.info("labels %s are taken off later: %s", ", ".join(sorted(stale)), error)

    def beat(self, fields: Iterable[str | int]) -> str:
        """Renew the lease and write ``fields``; ``"OK"``, ``"FENCED"`` or ``"FORGOTTEN"``, and notes a finish."""
        keys = (self._keys.node(self.node_id), self._keys.finish)
        word, finished = self._calls.script("beat", keys, (self.producer, self._lease, *fields))
        if finished and self.finish is None:
            self.look_for_finish()
        return str(word.decode())

    def prolong(self) -> bool:
        """Renew the lease with a single command; false when Redis has forgotten this node.

        Also when somebody else has put something there: that has no lease, or a longer one, which ``GT`` tells.
        """
        return bool(self._calls.call(b"PEXPIRE", self._keys.node(self.node_id), self._lease, b"GT"))

    def renew(self) -> None:
        """Give the keys of the run their whole time to live again, unless it is finished."""
        keys = (
            self._keys.finish,
            self._keys.nodes,
            self._keys.labels,
            self._keys.epoch,
            self._keys.streams,
            self._keys.producer(self.producer),
            self._keys.owner(self.node_id),
        )
        inbox = self._keys.inbox(self.node_id)
        self._calls.script("renew", (*keys, inbox), (self._keys.prefix, self._ttl, *sorted(self.labels)))

    # The run ---------------------------------------------------------------------------------------------------------

    def look_for_finish(self) -> FinishInfo | None:
        """Read the durable finish."""
        self.note_finish(self._calls.call(b"HGETALL", self._keys.finish))
        return self.finish

    def note_finish(self, flat: list[bytes]) -> None:
        """Take over what is in Redis, if that is a finish."""
        if found := finish_from(flat):
            self.finish, self.finish_in_redis = found, True

    def write_finish(self, reason: str, timeout: float, *, node: str = "", at: float = 0.0) -> FinishInfo | None:
        """Finish the run; returns the finish that holds, which is another node's when that was first.

        ``node`` and ``at`` are those of a finish that was declared earlier; default are this node and Redis' clock.
        ``None`` when Redis knows nothing of this life of the node, which has to claim its place again before.
        """
        keys = (self._keys.finish, self._keys.nodes, self._keys.labels, self._keys.epoch, self._keys.streams)
        args = (self._keys.prefix, node or self.node_id, reason, int(self._config.finish_ttl * 1000), at or "")
        life = (self._keys.producer(self.producer),) if self.epoch else ()
        answer = self._calls.script("finish", (*keys, *life), args, timeout=timeout)
        if answer == [b"FORGOTTEN"]:
            return None
        self.finish = finish_from(answer) or FinishInfo(self.node_id, reason, time.time())
        self.finish_in_redis = True
        return self.finish

    def nodes(self) -> list[NodeInfo]:
        """Every live node of the run, by id."""
        return self.census()[0]

    def census(self, timeout: float | None = None) -> tuple[list[NodeInfo], int]:
        """Every live node of the run, by id, and how many are listed whose lease ran out."""
        flat, dead = self._calls.script("nodes", (self._keys.nodes,), (self._keys.prefix,), timeout=timeout)
        found = [_node(*flat[position : position + 3]) for position in range(0, len(flat), 3)]
        return sorted(found, key=lambda node: (len(node.id), node.id)), dead

    def sweep(self, every: float = 0.0) -> list[str]:
        """Remove the nodes whose lease ran out; returns their ids.

        Not if anybody has done it in the last ``every`` seconds, so that many watchers cost little.
        """
        keys = (self._keys.nodes, self._keys.labels, self._keys.swept)
        gone = self._calls.script("sweep", keys, (self._keys.prefix, int(every * 1000), secrets.token_hex(4)))
        return [node_id.decode() for node_id in gone]

    def arrive(self, name: str, count: int, ticket: str, arrival: str, timeout: float) -> tuple[bool, str, list[str]]:
        """Be at a barrier: whether it is open, its generation, and who is there.

        ``arrival`` names this arrival, so that a repeated attempt of it is no second one; ``timeout`` is in seconds.
        """
        args = (self._keys.prefix, name, self.node_id, count, self._ttl, ticket, self.producer, arrival)
        limit = min(timeout, self._config.op_timeout)
        answer = self._calls.script("barrier", (self._keys.barrier(name),), args, timeout=limit)
        return bool(answer[0]), answer[1].decode(), sorted(node_id.decode() for node_id in answer[2:])

    def withdraw(self, name: str, arrival: str, timeout: float) -> bool:
        """Take an arrival at a barrier back; true when it has opened with it."""
        args = (self.node_id, self.producer, arrival)
        return bool(self._calls.script("withdraw", (self._keys.barrier(name),), args, timeout=timeout))

    def check(self, turn: int) -> bool:
        """Verify something about this node in Redis; false when it is not as it should be.

        By turns that all its keys are there, that its strings are as it wrote them, that its sets are sets, and one of
        the other things, each time the next.
        """
        if turn % 4 == 3:
            return self._is_noted(turn // 4)
        return (self._all_is_there, self._strings_are_right, self._sets_are_sets)[turn % 4]()

    def _strings_are_right(self) -> bool:
        found = self._calls.call(b"MGET", self._keys.epoch, self._keys.owner(self.node_id))
        return bool(found == [self.epoch, self.producer.encode()])

    def _sets_are_sets(self) -> bool:
        """What is subtracted from nothing costs nothing, but each of it has to be a set."""
        nothing, sets = self._keys.label(""), (self._keys.nodes, self._keys.labels, *map(self._keys.label, self.labels))
        return not self._calls.call(b"SDIFF", nothing, *sets)

    def _is_noted(self, turn: int) -> bool:
        questions = self.questions()[2:]  # the strings are asked about together
        question = questions[turn % len(questions)]
        if question.key == self._keys.finish:
            return self._finish_is_there()
        return question.is_right(self._calls.call(*question.command))

    def look_at_others(self, *, afresh: bool) -> tuple[bool, bool]:
        """Whether this node is as it should be in Redis, and whether all the others are there still.

        ``afresh`` asks who they are; else they are those of the last time.
        """
        if afresh or self._others is None:
            members = self._calls.call(b"SMEMBERS", self._keys.nodes)
            ids = {member.decode(errors="replace") for member in members} - {self.node_id}
            self._others = [self._keys.node(node_id) for node_id in ids]
        own = self._own_keys()
        found = self._calls.call(b"EXISTS", *own, *self._others, self._keys.finish)
        if found == len(own) + len(self._others) + self.finish_in_redis:
            return True, True
        self._others = None
        return self._all_is_there(), False

    def _own_keys(self) -> set[bytes]:
        return {
            *(self._keys.nodes, self._keys.epoch, self._keys.node(self.node_id), self._keys.owner(self.node_id)),
            self._keys.inbox(self.node_id),
            *([self._keys.labels] if self.labels else ()),
            *(self._keys.label(label) for label in self.labels),
        }

    def questions(self) -> list[Question]:
        """What to ask about each key in which Redis keeps what it knows of this node, less those that it renews itself.

        Each answer is an error where the key holds a value of another type.
        """
        me, keys = self.node_id, self._keys
        owner, finish = keys.owner(me), keys.finish
        found = [
            Question(keys.epoch, (b"GET", keys.epoch), lambda answer: answer == self.epoch),
            Question(owner, (b"GET", owner), lambda answer: answer == self.producer.encode()),
            Question(finish, (b"HGET", finish, b"node"), lambda answer: (answer is not None) == self.finish_in_redis),
        ]
        members = [(keys.nodes, me)]
        for label in sorted(self.labels):
            members += [(keys.labels, label), (keys.label(label), me)]
        return found + [Question(key, (b"SISMEMBER", key, member), bool) for key, member in members]

    def check_all(self) -> bool:
        """Verify all that Redis should know of this node; false when something is not as it should be."""
        answers = ((question, self._calls.call(*question.command)) for question in self.questions())
        return all(question.is_right(answer) for question, answer in answers) and self._all_is_there()

    def _all_is_there(self) -> bool:
        keys = self._own_keys()
        found = self._calls.call(b"EXISTS", *keys, self._keys.finish)
        if found > len(keys) and not self.finish_in_redis:
            return self._finish_is_there()  # its wake-up did not come
        return bool(found == len(keys) + self.finish_in_redis)

    def _finish_is_there(self) -> bool:
        if self.finish_in_redis:
            return bool(self._calls.call(b"TYPE", self._keys.finish) == b"hash")
        self.finish_in_redis = self.look_for_finish() is not None
        return True


def _ends(streams: list[bytes] | None) -> dict[str, EntryId] | None:
    """Ids end with the number of the event, so that these say how many there were, too."""
    if streams is None:
        return None
    counted = zip(streams[::3], streams[1::3], streams[2::3], strict=True)
    return {event.decode(errors="replace"): (int(ms), int(count)) for event, count, ms in counted}


def _node(node_id: bytes, left: int, flat: list[bytes]) -> NodeInfo:
    fields = {name.decode(): value.decode(errors="replace") for name, value in zip(flat[::2], flat[1::2], strict=False)}

    def number(name: str) -> float:
        try:
            return float(fields.get(name, "0"))
        except ValueError:
            return 0.0

    return NodeInfo(
        id=node_id.decode(errors="replace"),
        labels=frozenset(filter(None, fields.get("labels", "").split(","))),
        host=fields.get("host", ""),
        pid=int(number("pid")),
        role=fields.get("role", ""),
        step=int(number("step")),
        started=number("started") / 1000,
        seen=max(0.0, (number("lease") - left) / 1000),
        healthy=fields.get("healthy", "1") != "0",
        producer=fields.get("token", ""),
        lag=int(number("lag")),
        missed=int(number("missed")),
        rejected=int(number("rejected")),
        reconnects=int(number("reconnects")),
    )
