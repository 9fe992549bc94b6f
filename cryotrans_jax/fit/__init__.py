"""From two maps to a fit: preparation, recipes, training, trajectory."""
