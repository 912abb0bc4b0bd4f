SMALL = {"latent": 3, "channels": (4,), "hidden": (8,), "memory": 6, "components": 2, "seen": 2}
