"""The entries of a captured root as the repository format wants them: paths in order, times within its range. Pure."""

from collections.abc import Iterator

from savepoint.repository.format.tree import MAX_TIME_NS, Owner, TreeDirectory, TreeEntry, TreeFile, TreeSymlink

from savepoint_sidecar.capture.draft import Draft, shown

_MODE_BITS = 0o777


def tree_entries(draft: Draft) -> Iterator[TreeEntry]:
    """Yield an entry for everything in the draft that was captured."""
    contents = draft.table.contents()
    for node in draft.walk.nodes:
        mtime_ns = storable_time(node.signature.mtime_ns)
        owner = Owner(node.uid, node.gid)
        if node.is_directory:
            yield TreeDirectory(node.path, node.mode & _MODE_BITS, mtime_ns, owner)
        elif node.is_symlink:
            target = draft.links.get(node.path)
            if target:
                yield TreeSymlink(node.path, target, mtime_ns, owner)
        elif node.path not in draft.unreadable:
            content = contents.find(node.path)
            assert content is not None
            spooled = draft.spooled.get(node.path)
            if spooled is not None:
                mtime_ns = spooled.signature.mtime_ns
            mtime_ns = storable_time(draft.mtimes.get(node.path, mtime_ns))
            yield TreeFile(node.path, node.mode & _MODE_BITS, mtime_ns, content, owner)


def time_warning(draft: Draft) -> str:
    """Return the warning for entries whose time the format cannot hold; empty if there is none."""
    paths = [
        draft.shown(node.path)
        for node in draft.walk.nodes
        if storable_time(node.signature.mtime_ns) != node.signature.mtime_ns
    ]
    if not paths:
        return ""
    return (
        f"{len(paths)} entries have a modification time outside the years 1677 to 2262, of which the checkpoint holds "
        f"the nearest possible one; correct it with touch: {shown(paths)}"
    )


def storable_time(time_ns: int) -> int:
    """Return the nearest time that the format can hold."""
    return max(-MAX_TIME_NS, min(time_ns, MAX_TIME_NS))
