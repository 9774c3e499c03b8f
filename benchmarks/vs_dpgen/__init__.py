"""The same campaign by DP-GEN and by dpstream, on the same machine: time, labels, true error."""
