"""Metrics that a process exposes in addition to job counts and queue samples."""
