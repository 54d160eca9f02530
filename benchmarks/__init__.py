"""Speed and memory of every stage, beside its floor and its peers: ``python -m benchmarks``."""
