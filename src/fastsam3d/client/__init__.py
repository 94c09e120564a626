"""Using a server from Python; loads no torch. Needs ``fastsam3d[client]``."""
