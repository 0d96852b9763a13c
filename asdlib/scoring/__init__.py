"""From embeddings to clip scores: distances, back-ends, fusion, thresholds."""
