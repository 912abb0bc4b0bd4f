SMALL = {"hidden": (16,), "latent": 4, "labelled_per_batch": 8}
