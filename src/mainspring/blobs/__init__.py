"""Large values: what comes in is bytes, what goes out is their hash; names for them are rows beside the tasks.

Nothing here knows tasks' lives: a blob that no name and no task refers to is removed by whoever counts the references.
"""

from mainspring.blobs.base import BlobInfo, BlobKey, BlobStore
from mainspring.blobs.keys import BlobKeys
from mainspring.blobs.local import LocalBlobStore

__all__ = ["BlobInfo", "BlobKey", "BlobKeys", "BlobStore", "LocalBlobStore"]
