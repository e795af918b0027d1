"""Decisions about a pet, as pure functions: times and stored data are passed in."""
