"""Hugging Face folders that are quantized: one module a scheme, each giving tensors under plain names."""
