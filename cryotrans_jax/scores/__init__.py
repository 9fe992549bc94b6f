"""Measurements of a result: FSC, RMSD, Q-score, geometry."""
