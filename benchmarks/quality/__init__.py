"""How well clusters fit groups that are known: ours and others' on the same sets. ``python -m benchmarks.quality``."""
