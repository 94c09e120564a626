"""The server: sessions for any client over HTTP and WebSocket, one engine for all of them.

`fastsam3d.server.app.create_app` makes it, `fastsam3d serve` runs it; needs ``fastsam3d[server]``.
"""
