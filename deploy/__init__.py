"""Tools that build, check and start the deployment, run as ``python -m deploy.<name>``; not in the distribution."""
