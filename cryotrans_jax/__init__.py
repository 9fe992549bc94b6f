"""CryoTRANS in JAX: carry one cryo-EM density map onto another by a neural flow and optimal transport."""
