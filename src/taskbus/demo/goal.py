"""When the job is done."""

__all__ = ["EPISODES", "SOLVED"]

EPISODES = 20
"""Episodes of one evaluation."""

SOLVED = 475.0
"""The mean return at which CartPole-v1 counts as solved; 500 is the most that an episode can bring."""
