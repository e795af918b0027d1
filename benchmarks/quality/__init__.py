"""Agreement of clusters with known groups, for this engine and others on the same sets.

Run it with ``python -m benchmarks.quality``.
"""
