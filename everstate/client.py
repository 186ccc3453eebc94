"""The Python client; see `sidecar_api.client`, where it is built."""

from sidecar_api.client import *  # noqa: F403
from sidecar_api.client import __all__  # noqa: F401
