"""Running messages: batches, the isolation of crash suspects, progress reports, and detection of stuck processes."""
