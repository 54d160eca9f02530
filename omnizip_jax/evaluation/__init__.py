"""What methods cost, and how they fare beside each other."""
