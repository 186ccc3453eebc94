"""One module a command, each with ``register(app)``; what a command needs it imports when it runs."""
