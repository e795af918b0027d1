"""What operators run, and the Python that writes it: rules, dashboard and tables come from ``thresholds.yaml``."""
