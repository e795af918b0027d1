"""Persistence of pets: the port, its implementations for Redis and memory, and the export file."""
