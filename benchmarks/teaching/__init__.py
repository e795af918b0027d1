"""The effect of corrections on items that they do not name, for this engine and for scikit-learn's learners.

Run it with ``python -m benchmarks.teaching``.
"""
