"""Alert rules, dashboard, runbook and scripts, and what reads the rules and writes the dashboard."""
