"""What a pet is: its values, how they are stored as rows, and what can be read from them. No I/O."""
