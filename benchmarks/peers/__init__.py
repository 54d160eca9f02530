"""What others do: PyTorch versions of the compression, and transformers' thinker."""
