"""Train with accelerate, from models, objectives and optimizers that exist. Nothing here looks up plugins by name."""
