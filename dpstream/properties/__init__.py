"""Properties of materials by a model and by the recipe it was taught, side by side."""
