"""Decisions about a pet, as pure functions of values: the clock, the store and randomness are handed in."""
