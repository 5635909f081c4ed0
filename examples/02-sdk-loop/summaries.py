"""An agent with the SDK: it summarises documents and mails each summary once, however often it is killed."""

import time
from functools import partial
from pathlib import Path

import savepoint

DOCUMENTS = [f"document {number}" for number in range(1, 31)]
OUTBOX = Path("outbox.txt")  # stands for the outside world


def ask_model(document: str) -> str:
    """Stand in for a model call that takes time and costs money."""
    time.sleep(0.2)
    return f"summary of {document}"


def send_mail(operation: savepoint.Operation, text: str) -> None:
    """Stand in for a mail service that ignores an id it has seen."""
    sent = OUTBOX.read_text() if OUTBOX.exists() else ""
    if operation.id not in sent:
        with OUTBOX.open("a") as file:
            file.write(f"{operation.id} {text}\n")


agent = savepoint.connect()  # the state is back when this returns
notes = agent.document("notes", default={"summaries": []})
print(f"found {len(notes['summaries'])} summaries", flush=True)
for document in agent.loop("documents", DOCUMENTS):  # finished documents are skipped
    summary = agent.step("summarise", ask_model, document)  # a finished step is replayed, not run again
    notes["summaries"].append(summary)
    agent.effect("mail", partial(send_mail, text=summary))
    print(f"mailed {summary}", flush=True)
agent.finish()  # the next run starts fresh
