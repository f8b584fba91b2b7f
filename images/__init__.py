"""Which images there are, decoding, loading, distortions."""
