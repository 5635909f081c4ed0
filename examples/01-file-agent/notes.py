"""An agent that has never heard of Savepoint: it keeps its work in a folder and continues from what it finds there."""

import sys
import time
from pathlib import Path

work = Path(sys.argv[1])
notes = work / "notes.txt"
seen = len(notes.read_text().splitlines()) if notes.exists() else 0
print(f"found {seen} notes", flush=True)
for number in range(seen + 1, 31):
    time.sleep(0.2)  # thinking
    with notes.open("a") as file:
        file.write(f"note {number}\n")
    print(f"note {number} of 30", flush=True)
