"""Small models of DeePMD-kit, and how they are trained."""
