"""Evidence: predictions for each test example, the figures over them, and the verdict on two sets of them."""
