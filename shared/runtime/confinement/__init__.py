"""What engines and labeling programs may reach, and that nothing outlives them."""
