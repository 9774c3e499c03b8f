"""Files of DP-GEN."""
