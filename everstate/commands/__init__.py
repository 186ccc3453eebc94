"""One module a command, each with ``register(app)``; a command imports what it needs when it
runs.
"""
