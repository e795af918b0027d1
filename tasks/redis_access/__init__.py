"""Access to Redis: the forms of its URL, its errors, a probe of its writes, and a server started by a process."""
