"""Declaring upcasters of old event shapes; see `schemas.upcasters`, where they are built."""

from schemas.upcasters import Upcaster, upcaster

__all__ = ["Upcaster", "upcaster"]
