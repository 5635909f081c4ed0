"""Messages of the sidecar's code as ``savepoint run`` shows them: in terms of its own options, never of pods.

The sidecar's code words its remedies for a cluster. This is the only place that rewords them for a laptop.
"""

import logging
import re
from typing import Final

_REMEDIES: Final = (
    (r" If status\.runAsUser of the ProtectedAgent .* given the files\.", ""),
    (r"[,;]? or raise spec\.quiesce\.\w+ in the policy", ""),
    (r"raise spec\.quiesce\.\w+ in the policy", "change less between safe points"),
    (r"Raise spec\.quiesce\.\w+ in the policy, or change", "Change"),
    (r"set runAsUser on the agent's container, or fsGroup on the pod", "start `savepoint run` as the folder's owner"),
    (
        r"Set runAsUser: (\w+) on the agent's container, or annotate the pod template with \S+ \w+",
        r"Start `savepoint run` as uid \1, or leave the file out with --exclude",
    ),
    (
        r"Set runAsUser: (\w+) on the agent's container",
        r"Start `savepoint run` as uid \1, or leave the file out with --exclude",
    ),
    (r", or annotate the pod template with [^.;]*", ""),
    (r"(exclude it|Exclude it) with spec\.state\.exclude in the policy", r"\1 with --exclude GLOB"),
    (r"with spec\.state\.exclude in the policy", "with --exclude GLOB"),
    (r"(exclude \w+) in the policy", r"\1 with --exclude GLOB"),
    (r"([Rr])aise the size of the stage volume", lambda match: _capital(match[1], "free space on the store's disk")),
    (r"make the stage volume larger", "free space on the store's disk"),
    (
        r"the stage volume has no room for (.*): make it larger",
        r"the store's disk has no room for \1: free space there",
    ),
    (r"raise spec\.stage\.sizeLimit in the policy if spec\.stage\.medium is Memory, or free space", "free space"),
    (r"the stage must be a writable volume", "the store's folder must be writable"),
    (r"the agent has no volume of its own and no state path", "the agent has no state folder"),
    (r"Name its folders in annotation \S+ of the pod template", "Name its folders with --state PATH"),
    (r"give the volume more space", "free space on its disk"),
    (r"must be a writable volume with a POSIX file system", "must be a writable folder on a POSIX file system"),
    (r"is a persistent volume with files but", "contains files but is"),
    (r"Empty the volume to restore, or reset the agent", "Empty the folder to restore, or start fresh with --agent"),
    (r"its next pod restores", "its next start restores"),
    (r"the agent's next pod starts the next run", "the next `savepoint run` starts the next run"),
    (r"([Tt]he) pod is stopping", r"\1 agent is stopping"),
    (r"is superseded: pod (\S+) holds", r"is superseded: run \1 holds"),
)
_WORDS: Final = (
    (r"the policy's spec\.\S+", "the command line"),
    (r"\bspec\.\w[\w.]*", "the option"),
    (r"the policy", "the command line"),
    (r"the operator", "the supervisor"),
    (r"operator", "supervisor"),
    (r"the sidecar", "the supervisor"),
    (r"sidecar", "supervisor"),
    (r"pods", "runs"),
    (r"pod", "run"),
    (r"volumes", "folders"),
    (r"volume", "folder"),
)
_PATTERNS: Final = tuple((re.compile(pattern), replacement) for pattern, replacement in _REMEDIES) + tuple(
    (re.compile(rf"(?<![\w/.'\"-]){pattern}(?![\w/-]|\.\w)"), replacement) for pattern, replacement in _WORDS
)


def laptop_text(text: str) -> str:
    """Return a message of the sidecar's code in the terms of ``savepoint run``. Paths and quoted names stay."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class LaptopFormatter(logging.Formatter):
    """Formats log records for the user of ``savepoint run``."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        record.message = laptop_text(record.message)
        return super().formatMessage(record)


def _capital(letter: str, text: str) -> str:
    return text[0].upper() + text[1:] if letter.isupper() else text
