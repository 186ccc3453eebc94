"""Benchmarks: what the README and the targets of the project rest on. See benchmarks/README.md.

``python -m benchmarks`` measures, ``python -m benchmarks.profile`` looks for where time goes.
"""
