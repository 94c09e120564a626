"""Using a server from Python, without torch. Needs ``fastsam3d[client]``."""

from fastsam3d.client.remote import RemoteSession

__all__ = ["RemoteSession"]
