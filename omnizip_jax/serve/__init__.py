"""HTTP and WebSocket server around one ``engine``, which owns the device.

``server`` has the HTTP API and ``live`` the WebSocket; both submit ``answer_steps`` to
the engine. See docs/serving.md.
"""
