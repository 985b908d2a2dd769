"""A small model that comes with the package, and the command that shows what can be done with it."""
