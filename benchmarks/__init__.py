"""Benchmarks against the alternatives that a user would otherwise choose: ``make bench``. Never run as timed tests."""
