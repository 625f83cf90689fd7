"""The speed of the library, compared with a plain PyTorch loop and JoeyNMT on the same model and data: `make bench`."""
