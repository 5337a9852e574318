"""Read or generate problems, check them and split them."""
