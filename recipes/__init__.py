"""How the checkpoints that come with the package were made."""
