"""Composer callbacks that watch and record training."""
