"""File formats of weights: Hugging Face folders, safetensors, GGUF, and block-quantised tensors (fp8, MXFP4)."""
