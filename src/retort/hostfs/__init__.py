"""Files by descriptor: nothing here resolves a user's path on the host."""
