"""The schema: Alembic migrations whose SQL is in ``sql/``. Nothing imports this room but
Alembic.
"""
