"""Benchmarks against the alternatives that users might choose: ``make bench``. Tests never assert their times."""
