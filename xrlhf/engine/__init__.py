"""From a recipe to a trained model: launch, build, loops, strategies, checkpoints."""
