"""Who a task is on its run, and who else is there."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from taskbus.config import check_count, check_timeout
from taskbus.errors import ConfigError, NotStarted
from taskbus.link import NOT_STARTED, UNSTARTED, match_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskbus.types import Labels, Link, NodeInfo

__all__ = ["Presence", "Role"]


class Role(str, Enum):  # noqa: UP042 StrEnum prints as its value, where a log should say Role.LEARNER
    """What a task does on its run; without any it does everything."""

    LEARNER = "learner"
    COLLECTOR = "collector"
    EVALUATOR = "evaluator"
    FETCHER = "fetcher"


class Presence:
    """The part of a task that knows roles, labels and nodes."""

    role = Role
    ctx: Any

    def __init__(self) -> None:
        self._link: Link = NOT_STARTED
        self._labels: frozenset[str] = frozenset()
        self._roles: set[Role] = set()
        self._role_names = ""
        self._leaving = False

    def _enter_link(self, link: Link, labels: frozenset[str]) -> Callable[[], None]:
        """Be a task of ``link`` that carries ``labels``; returns what takes them off it."""
        take_off = link.add_labels(labels) if labels else lambda: None
        self._link = link
        self._roles, self._role_names = set(), ""
        self._labels = labels | link.labels
        if link.node_id is not None:
            self._labels |= {"distributed", f"node.{link.node_id}"}
        return take_off

    def _check_started(self) -> None:
        if self._link is NOT_STARTED:
            raise NotStarted(UNSTARTED)

    @property
    def roles(self) -> set[Role]:
        """The roles that were added."""
        return set(self._roles)

    def add_role(self, role: Role) -> Self:
        """Have this role, until the task is stopped."""
        self._check_started()
        if role not in list(Role):
            raise ConfigError(f"there is no role {role!r}, only {', '.join(one.value for one in Role)}")
        self._roles.add(Role(role))
        self._role_names = ",".join(sorted(one.value for one in self._roles))
        self._link.progress(self.ctx.total_step, self._role_names)
        return self

    def has_role(self, role: Role) -> bool:
        """Whether the role was added; a task without any has all."""
        return not self._roles or role in self._roles

    @property
    def labels(self) -> set[str]:
        """The given ones, ``async``, ``standalone`` or ``distributed``, ``node.{id}`` and the router's."""
        return set(self._labels)

    def match_labels(self, patterns: Labels) -> bool:
        """Whether one of the shell-style globs matches one of this task's labels."""
        return match_labels(self._labels, patterns)

    def nodes(self, patterns: Labels = None) -> list[NodeInfo]:
        """Who is on the run now, by label globs; this node included where it matches."""
        return self._link.nodes(patterns)

    def wait_for_nodes(self, patterns: Labels = None, count: int = 1, timeout: float = math.inf) -> list[NodeInfo]:
        """Return the nodes that match once there are ``count``; ``WaitTimeout`` says how many there were.

        ``RunFinished`` ends it early when the run was finished, or this task was asked to leave.
        """
        check_count("count", count, 0)
        return self._link.wait_for_nodes(patterns, count, check_timeout(timeout), lambda: self._leaving)

    def barrier(self, name: str, count: int, timeout: float = math.inf) -> None:
        """Return when ``count`` nodes are at the barrier ``name``, which can be used again and again.

        ``RunFinished`` ends it early when the run was finished, or this task was asked to leave.
        """
        check_count("count", count, 1)
        self._link.barrier(name, count, check_timeout(timeout), lambda: self._leaving)

    def get_attch_to_len(self) -> int:
        """Number of other live nodes on the run (the name is historical)."""
        if not self._link.is_active:
            raise NotStarted("there is no active router, so there are no other nodes to count")
        return len(self._link.nodes()) - 1
