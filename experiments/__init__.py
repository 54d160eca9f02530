"""Training of the small model, and studies of accuracy and stream memory; not part of the wheel."""
