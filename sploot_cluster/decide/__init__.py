"""Decisions about a pet, as functions of values: the clock and the store are passed in."""
