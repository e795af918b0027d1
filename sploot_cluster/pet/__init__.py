"""The data model of a pet: its values, their rows in memory, and views computed from them. No I/O."""
