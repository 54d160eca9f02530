"""Synthetic clips and questions with known answers, and the small model trained on them."""
