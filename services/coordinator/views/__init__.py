"""What people and programs see of a campaign, one projection per question."""
