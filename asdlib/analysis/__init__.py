"""Analysis of trained detectors: latents, explanations, projections, tuning, ablations."""
