"""Consumer groups: members share the slices of a log; the server keeps the place.

`model` what is spoken of · `partition` the rules of one partition, without I/O · `worklist` those
of one member · `store` the tables · `session` a connected member · `node` the groups of a process.
Why it is so: ADR 10.
"""
