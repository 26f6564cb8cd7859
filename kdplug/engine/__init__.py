"""Train given models, objectives and optimizers with accelerate. Nothing here looks up plugins by name."""
