"""Figures that a process exposes next to the counts of jobs and the samples of queues."""
