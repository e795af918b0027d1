"""Tools that build, check and start what is deployed, each as ``python -m deploy.<name>``. Not in the distribution."""
