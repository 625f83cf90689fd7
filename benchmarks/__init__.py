"""How fast the study is, beside a plain PyTorch loop and JoeyNMT at the same model, batch and data: `make bench`."""
