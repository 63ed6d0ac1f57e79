"""Benchmarks: interleaved runs beside named peers, told as ratios."""
