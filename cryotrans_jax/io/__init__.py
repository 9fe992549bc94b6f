"""Files: maps, atomic models, checkpoints."""
