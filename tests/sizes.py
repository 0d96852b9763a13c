"""Settings of networks that train in seconds, for the tests."""

from asdlib import config

BASELINE = config.Autoencoder(epochs=2, n_mels=16, hidden=12, bottleneck=4)
FEATURES = config.OEVAEFeatures(segments=3, segment_s=0.5, n_mels=16, n_fft=512, win_length=512, hop_length=256)
TINY = config.OEVAE(features=FEATURES, width=4, hidden=16, latent=8, domain_latent=3, batch=16, epochs=2, refit_epochs=3, k_scales=(1.0, 5.0))
SMALL = config.Classifier(clip_seconds=1.0, n_fft=256, hop_length=256, n_mels=40, dim=8, subclusters=2, kmeans=4, epochs=2, batch=8)
