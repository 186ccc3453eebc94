"""What every room may use: ids, clock, errors, database access, telemetry. It imports no other
room.
"""
