"""What an author of a plugin tests it with."""
