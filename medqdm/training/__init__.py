"""Training: stage one (KL-VAE), stage two (QDM), export."""
