"""Messages while they run in a process: in a batch or in isolation, how far they are, and whether they progress."""
