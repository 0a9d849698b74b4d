"""Composer callbacks: what watches and records training."""
