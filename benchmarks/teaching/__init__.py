"""What corrections teach about items that they do not name, for this engine and for learners of scikit-learn.

Run it with ``python -m benchmarks.teaching``.
"""
