"""Initial data as in DP-GEN's init_bulk and init_surf: relax, scale, perturb, short dynamics."""
