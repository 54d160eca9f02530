"""A server: OpenAI's chat completions and live video over a socket, on one device.

``engine`` owns the device and interleaves the windows of live sessions with answers, a step at a
time; ``asking`` is an answer as steps. ``http`` and ``live`` are what clients speak, ``chat`` reads
their questions, ``sources`` and ``worker`` their media. ``guard`` and ``remote`` keep out what has
no business here.
"""
