"""What a killed run needs to go on: trees without pickle, resume points on disk, their copy in S3."""
