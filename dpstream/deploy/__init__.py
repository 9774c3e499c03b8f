"""What a deployment needs: rights, access files, a private cluster."""
