"""What detectors know and why they decide: latents, explanations, projections, tuning grids, ablations."""
