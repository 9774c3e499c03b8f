"""`dpstream run`: on this machine alone, or joined to a deployment."""
