"""Object stores: a directory, an S3 bucket, a set of presigned URLs; and stores around a store.

It knows keys and bytes, never what they mean: the format is ``savepoint.repository``. Everything here is synchronous,
blocking and thread-safe. Import the implementation you need from its module: this package imports none of them, so a
process without minio can use the others.
"""

from savepoint.storage.store import BlobReader, BlobWriter, Buffer, ObjectInfo, ObjectStore

__all__ = ["BlobReader", "BlobWriter", "Buffer", "ObjectInfo", "ObjectStore"]
