"""What the pipelines are made of: their tasks and how they follow each other."""
