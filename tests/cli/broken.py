"""A module that cannot be imported."""

raise RuntimeError("not even imported")
