"""Built-in architectures, one file a family."""
