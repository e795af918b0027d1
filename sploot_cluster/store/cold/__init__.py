"""Cold pets: vectors of pets that nobody adds to, kept in a directory or an object store instead of Redis (ADR 20)."""
