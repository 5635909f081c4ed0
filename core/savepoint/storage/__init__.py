"""Object stores: a directory, an S3 bucket, a set of presigned URLs; and wrappers that add behaviour to a store.

A store handles keys and bytes and does not know what they mean: the format is ``savepoint.repository``. Everything
here is synchronous, blocking and thread-safe. Import an implementation from its own module: this package imports none,
so a process without minio can use the others.
"""

from savepoint.storage.store import BlobReader, BlobWriter, Buffer, ObjectInfo, ObjectStore

__all__ = ["BlobReader", "BlobWriter", "Buffer", "ObjectInfo", "ObjectStore"]
