"""The layer between queue and domain: messages, actors, observability, and the composition of processes."""
