"""One module a thing, each with ``register(app)``."""
