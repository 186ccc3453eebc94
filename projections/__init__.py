"""Read models: named, versioned functions that turn the log into tables, exactly once."""
