"""A plugin package."""
