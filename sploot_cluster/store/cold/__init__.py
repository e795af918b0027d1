"""Cold pets: unchanged for days, with their vectors in a directory or object store instead of in Redis (ADR 20)."""
