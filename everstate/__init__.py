"""Everstate: the datastore of stateful services.

Users import ``everstate.client``; everything here is loaded when it is first touched.
"""

__version__ = "0.1.0"
