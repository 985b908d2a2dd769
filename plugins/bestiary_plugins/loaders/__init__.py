"""Built-in loaders and writers, one file a format."""
