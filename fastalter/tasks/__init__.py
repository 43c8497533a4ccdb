"""What a model is trained for: targets, losses, decoding."""
