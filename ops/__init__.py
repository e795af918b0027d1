"""Alert rules, dashboard, runbook and scripts, and the modules that generate them from ``thresholds.yaml``."""
