"""State folders of ``savepoint run``: which folders the options name, and which parts of a checkpoint belong to them.

A folder is identified by its absolute path, which the name of its component in a checkpoint spells out. Only the
decision is made here; restoring is ``supervisor``'s task.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from savepoint.contract.names import AGENT_NAME_MAX
from savepoint.errors import StateLeftBehind, StatePathInvalid
from savepoint.repository.format.manifest import Manifest
from savepoint_sidecar.files.roots import COMPONENT_PREFIX, Root

NAME_MAX: Final = 160
"""Longest name of a root: it is also part of a file name."""
_DIGEST_CHARACTERS: Final = 32

Find = Callable[[str, Sequence[Root]], Root | None]
"""A rule that finds the root to which a component belongs."""


def dns_label(text: str) -> str:
    """Return the text as a DNS label that is short enough for an agent's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:AGENT_NAME_MAX].strip("-") or "agent"


def root_name(path: str) -> str:
    """Return the name of the root at this absolute path: the path itself, quoted, with a digest if it is too long."""
    quoted = quote(os.fsencode(path), safe="")
    if len(quoted) <= NAME_MAX:
        return quoted
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{quoted[: NAME_MAX - _DIGEST_CHARACTERS - 1]}~{digest}"


def shown_path(component: str) -> str:
    """Return a component's folder as messages name it: its path, or the name that an earlier version gave it."""
    name = component.removeprefix(COMPONENT_PREFIX)
    if not _spells_path(name):
        return name
    return unquote(name, errors="surrogateescape").encode(errors="backslashreplace").decode()


def absolute(path: Path) -> Path:
    """Return the path as an absolute one; links stay as the user wrote them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - ``absolute`` keeps "..", ``resolve`` follows links


def state_roots(states: Iterable[Path]) -> tuple[Root, ...]:
    """Return the state folders as roots, in the order given.

    A folder that lies in another one, or is named twice, is part of the other root and gets none of its own.
    """
    roots: list[Root] = []
    for path in dict.fromkeys(map(absolute, states)):
        roots.append(Root(root_name(str(path)), str(path), path.resolve(), persistent=True))
    return tuple(root for root in roots if covering(root, roots) is None)


def covering(root: Root, roots: Sequence[Root]) -> Root | None:
    """Return another of these roots that contains the root; of two roots at one folder the first contains the other."""
    for index, other in enumerate(roots):
        if other is root:
            continue
        same = other.path == root.path
        if root.path.is_relative_to(other.path) and not (same and index > roots.index(root)):
            return other
    return None


def nested(states: Iterable[Path]) -> list[tuple[str, str]]:
    """Return each folder that lies in another one of these, with that one."""
    roots = [Root(root_name(str(path)), str(path), path.resolve()) for path in dict.fromkeys(map(absolute, states))]
    found = ((root, covering(root, roots)) for root in roots)
    return [(root.mount_path, outer.mount_path) for root, outer in found if outer is not None]


def check_states(roots: Sequence[Root], own: Iterable[Path]) -> None:
    """Raise StatePathInvalid for a path that is not a folder, or that lies in one of Savepoint's ``own`` folders."""
    for root in roots:
        shown = root.mount_path
        if root.path == Path("/"):
            raise StatePathInvalid("--state / is the whole file system: name the folder that holds the agent's state")
        blocking = next((each for each in (root.path, *root.path.parents) if os.path.lexists(each)), root.path)
        if not blocking.is_dir():
            what = "is" if blocking == root.path else f"cannot be created: {blocking} is"
            raise StatePathInvalid(
                f"--state {shown} {what} not a folder: name the folder that contains it, and leave other files in it "
                "out with --exclude"
            )
        for each in own:
            if root.path.is_relative_to(each):
                raise StatePathInvalid(
                    f"--state {shown} lies in {each}, the folder of the store or of its key: name a folder outside it"
                )


def make_folder(path: Path) -> None:
    """Create a state folder if it is missing. StatePathInvalid if that is not possible."""
    try:
        path.resolve().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StatePathInvalid(
            f"--state {path} cannot be created ({error.strerror or error}): create it, or name a folder that you may "
            "write"
        ) from error


def match_components(
    manifest: Manifest, roots: Sequence[Root], *, moved: Mapping[str, Path], checkpoint: str, dropped: Iterable[str]
) -> dict[str, str]:
    """Return the new name of each file tree of a checkpoint that is stored under another name than its root has.

    A tree belongs to the root of the same path, to the root that ``moved`` names for it, to the root whose folder its
    path leads to, or, if an earlier version named it, to the only root with that base name.

    Args:
        manifest: The checkpoint.
        roots: The state folders of this run.
        moved: New folder of a tree, by the path or the name that it has in the checkpoint.
        checkpoint: The checkpoint's name, for the error.
        dropped: Paths or names of trees to leave out from now on.

    Raises:
        StateLeftBehind: A tree belongs to no root and is not dropped.
        StatePathInvalid: ``moved`` or ``dropped`` contradicts the state folders.
    """
    trees = {each.name for each in manifest.components if each.name.startswith(COMPONENT_PREFIX)}
    targets = _moved_components(moved, roots)
    drops = {_component_of(each) for each in dropped} | {COMPONENT_PREFIX + each for each in dropped}
    for root in roots:
        if root.component in drops:
            raise StatePathInvalid(f"--drop-state and --state both name {root.mount_path}: leave one of them out")
    free = {root.component: root for root in roots if root.component not in trees}
    left = trees - {root.component for root in roots} - drops
    names: dict[str, str] = {}
    for find in (_moved_to(targets), _same_folder, _same_base_name(trees)):
        for tree in sorted(left - set(names)):
            found = find(tree, list(free.values()))
            if found is not None:
                names[tree] = found.component
                del free[found.component]
    lost = sorted(left - set(names))
    if lost:
        raise _left_behind(lost[0], roots, list(free.values()), checkpoint)
    return names


def _moved_components(moved: Mapping[str, Path], roots: Sequence[Root]) -> dict[str, str]:
    known = {root.component for root in roots}
    targets: dict[str, str] = {}
    for old, new in moved.items():
        component = COMPONENT_PREFIX + root_name(str(absolute(new)))
        if component not in known:
            raise StatePathInvalid(f"--move-state {old} {new}: {new} is not a state folder; add --state {new}")
        targets[_component_of(old)] = targets[COMPONENT_PREFIX + old] = component
    return targets


def _moved_to(targets: Mapping[str, str]) -> Find:
    def find(tree: str, roots: Sequence[Root]) -> Root | None:
        return next((root for root in roots if root.component == targets.get(tree)), None)

    return find


def _same_folder(tree: str, roots: Sequence[Root]) -> Root | None:
    name = tree.removeprefix(COMPONENT_PREFIX)
    if not _spells_path(name) or "~" in name[-_DIGEST_CHARACTERS - 1 :]:
        return None
    folder = Path(unquote(name, errors="surrogateescape")).resolve()
    return next((root for root in roots if root.path == folder), None)


def _same_base_name(trees: Iterable[str]) -> Find:
    """Return a rule for the names of earlier versions: the base name, and a number if two folders shared it."""
    names = {tree.removeprefix(COMPONENT_PREFIX) for tree in trees}

    def find(tree: str, roots: Sequence[Root]) -> Root | None:
        name = tree.removeprefix(COMPONENT_PREFIX)
        if _spells_path(name) or any(re.fullmatch(re.escape(name) + r"-[0-9]+", each) for each in names):
            return None
        alike = [root for root in roots if dns_label(Path(root.mount_path).name) == name]
        return alike[0] if len(alike) == 1 else None

    return find


def _left_behind(tree: str, roots: Sequence[Root], free: Sequence[Root], checkpoint: str) -> StateLeftBehind:
    old = shown_path(tree)
    named = ", ".join(root.mount_path for root in roots) or "none"
    new = (free[0] if free else roots[0]).mount_path if roots else "NEW"
    return StateLeftBehind(
        f"checkpoint {checkpoint} holds the state folder {old}, which this run does not name (its state folders: "
        f"{named}): nothing was started. Add --state {old}; or, if the folder moved, --move-state {old} {new}; or "
        f"leave it out from now on with --drop-state {old}"
    )


def _component_of(path: str) -> str:
    return COMPONENT_PREFIX + root_name(str(absolute(Path(path))))


def _spells_path(name: str) -> bool:
    return name.startswith(quote("/", safe=""))
