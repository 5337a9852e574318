"""Make, save or restore a bucket: what a backup needs where there is no S3 client.

python bucket.py create BUCKET; python bucket.py save BUCKET > FILE.tar; python bucket.py restore BUCKET < FILE.tar.
Endpoint and credentials come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import sys
import tarfile

import boto3

s3 = boto3.client("s3")


def create(bucket):
    """Make the bucket unless it is there."""
    if bucket not in (found["Name"] for found in s3.list_buckets()["Buckets"]):
        s3.create_bucket(Bucket=bucket)


def save(bucket):
    """Write every object into a tar on standard output."""
    count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                member = tarfile.TarInfo(item["Key"])
                member.mtime = int(item["LastModified"].timestamp())
                response = s3.get_object(Bucket=bucket, Key=item["Key"])
                member.size = response["ContentLength"]  # of this very read: the listing may be older
                tar.addfile(member, response["Body"])
                count += 1
    print(f"saved {count} objects of {bucket}", file=sys.stderr)


class Stream:
    """A file that can only be read: boto3 trips over tarfile's, which says it could seek."""

    def __init__(self, file):
        self.read = file.read


def restore(bucket):
    """Put every file of a tar on standard input into the bucket; what else is there stays."""
    create(bucket)
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            if member.isfile():
                s3.upload_fileobj(Stream(tar.extractfile(member)), bucket, member.name)
                count += 1
    print(f"restored {count} objects to {bucket}", file=sys.stderr)


if __name__ == "__main__":
    actions = {"create": create, "save": save, "restore": restore}
    if len(sys.argv) != 3 or sys.argv[1] not in actions:
        raise SystemExit("usage: bucket.py create|save|restore BUCKET")
    actions[sys.argv[1]](sys.argv[2])
