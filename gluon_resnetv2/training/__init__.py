"""Training: a recipe, the loop that follows it, and the folder of the run that it makes."""
