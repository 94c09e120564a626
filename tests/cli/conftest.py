"""The toy server of the server's own tests."""

from tests.server.conftest import live

__all__ = ["live"]
