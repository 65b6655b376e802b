"""Tensor operations that know neither models nor data files."""
