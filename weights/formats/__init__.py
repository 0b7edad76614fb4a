"""File formats that weights come in: Hugging Face folders, safetensors, GGUF, and quantized blocks."""
