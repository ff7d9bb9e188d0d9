"""Differential privacy: what was released (events), what it costs (accountant, calibrate), and how a sum is bounded and noised (clip, noise, dpsgd)."""
