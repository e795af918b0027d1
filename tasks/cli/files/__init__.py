"""Commands that read items from files and write captures, and the readers of such files."""
