"""A task on which answers can be checked: clips, questions, and a small model that learns them."""
