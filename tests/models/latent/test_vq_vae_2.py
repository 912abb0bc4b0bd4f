# One halving: a top map of a single place would leave a prior nothing to learn from what came before.
SMALL = {
    "codes": 8,
    "features": 4,
    "halvings": 1,
    "hidden": 8,
    "blocks": 1,
    "residual": 4,
    "prior_features": 8,
    "prior_layers": 1,
}
