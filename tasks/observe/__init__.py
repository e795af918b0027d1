"""What is measured, logged, traced and reported about jobs, and how it is exposed."""
