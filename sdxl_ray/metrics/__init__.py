"""Arithmetic on plain numbers: quality, overfitting, intervals, latency. No torch."""
