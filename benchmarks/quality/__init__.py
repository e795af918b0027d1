"""Agreement of clusters with known groups, for this engine and others on the same sets: ``python -m
benchmarks.quality``."""
