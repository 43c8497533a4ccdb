"""Which channels go together: a pass with labels in the channels' places, what operations say of them, a trial."""
