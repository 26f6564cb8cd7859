"""What a head is trained on: how it is read, compared and measured."""
