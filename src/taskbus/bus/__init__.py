"""A node's life on Redis, one noun a file; the only place that imports ``redis``."""

__all__: list[str] = []
