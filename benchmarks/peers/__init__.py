"""What Everstate is compared with; each runs in a process of its own."""
