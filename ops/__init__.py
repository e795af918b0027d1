"""Alert rules, dashboard, runbook and scripts, with the modules that read the rules and write the dashboard."""
