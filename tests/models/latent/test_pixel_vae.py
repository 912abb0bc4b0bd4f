SMALL = {"latent": 3, "hidden": 6, "context": 4, "features": 8, "layers": 2, "first": 3, "readout_features": 8}
