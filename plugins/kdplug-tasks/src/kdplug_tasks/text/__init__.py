"""Turn text into model inputs."""
