"""Preparation and description of maps: thresholds, masks, alignment, symmetry, simulation."""
