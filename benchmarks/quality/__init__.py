"""The agreement of clusters with known groups, for our engine and other methods on the same data sets.

Run it with ``python -m benchmarks.quality``.
"""
