"""The coordinator: runs the rounds; never sees a record."""
