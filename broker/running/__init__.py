"""Messages while they run in a process: together in a batch, how far they are, and whether they make progress."""
