"""The agreement of clusters with known groups, for this engine and other methods on the same sets.

Run it with ``python -m benchmarks.quality``.
"""
