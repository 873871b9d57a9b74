"""A job for several processes: a learner, collectors and an evaluator that train a policy for CartPole together.

``learner.py``, ``collector.py`` and ``evaluator.py`` are the job: three short programs, and how to start each by hand.
The rest is NumPy (``policy.py``, ``playing.py``, ``learning.py``) and the command that starts them and looks on.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``taskbus demo`` with these arguments (default: those of the process); returns its exit code."""
    from taskbus.demo.command import main as command

    return command(argv)
