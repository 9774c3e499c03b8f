"""DP-GEN's machine file, and the pools of workers that its machines become."""
