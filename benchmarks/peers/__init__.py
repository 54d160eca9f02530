"""PyTorch peers: compression rules, published methods, and transformers' thinker."""
