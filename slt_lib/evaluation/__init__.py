"""Beam search, BLEU and TER."""
