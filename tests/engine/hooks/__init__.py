"""A package, so that test modules here may be called as those of the folder above."""
