"""Contexts, prefill, decoding and streams: from encoded windows to answers."""
