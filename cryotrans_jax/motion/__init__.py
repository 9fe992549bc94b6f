"""Motions and correspondences beyond the paper: lattices, rigid bodies, parts and their borders."""
