"""Context: what a step carries from middleware to middleware, and what survives into the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

__all__ = ["Context"]


@dataclass
class Context:
    """The data of one step; subclass it as a dataclass, or set attributes as you go.

    A field needs a default, for every step begins with a new object::

        @dataclass
        class Training(Context):
            episodes: list[Episode] = field(default_factory=list)
            best: float = 0.0

            def __post_init__(self) -> None:
                self.keep("best")

    Attributes:
        total_step: Steps that were completed before this one.
    """

    total_step: int = 0

    _kept: ClassVar[tuple[str, ...]] = ()  # an instance that keeps something has its own

    if TYPE_CHECKING:  # open for attributes, to type checkers too

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def keep(self, *names: str) -> None:
        """Carry these attributes over the next :meth:`renew`; named in ``__post_init__``, over every one."""
        self.__dict__["_kept"] = (*self._kept, *names)

    def renew(self) -> Self:
        """A new object of the same class: ``total_step + 1``, what was kept, and everything else at its default."""
        new = type(self)()
        new.total_step = self.total_step + 1
        for name in self._kept:
            if hasattr(self, name):
                setattr(new, name, getattr(self, name))
        return new

    def has_attr(self, name: str) -> bool:
        """Whether the attribute was declared or set."""
        return hasattr(self, name)
