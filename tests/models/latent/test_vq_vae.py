SMALL = {"codes": 8, "features": 4, "hidden": 8, "blocks": 1, "residual": 4, "prior_features": 8, "prior_layers": 1}
