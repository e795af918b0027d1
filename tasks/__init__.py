"""The layer between the queue and the domain: messages, actors, observability and the assembly of processes."""
