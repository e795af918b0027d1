"""Metrics, logs, traces and error reports of jobs, and how they are exposed."""
