"""Built-in quantizers, one file an encoding."""
