"""The networks: KL-VAE and the two-stream transformer; tensors only."""
