"""Qwen2.5-Omni: sizes, encoders, positions, released names."""
