"""A Kombu transport in one SQLite file: `sqlqueue:///relative.db`, `sqlqueue:////absolute.db`.

Importing this package registers the URL scheme with Kombu; that is all that happens at import.

Features
========
* Type: virtual (one file, many processes, one machine)
* Supports direct exchanges and the default exchange: yes
* Supports topic and fanout exchanges: not yet
* Supports priorities: yes, 0 to 9, higher first
* Supports `eta` held by the broker: yes (`hold_eta`)
* Supports `expires` and `expiration`: yes
* Supports visibility timeouts: yes (`visibility_timeout`), extended while the consumer lives
* Supports batches (`Producer.batch`): yes, one transaction a flush
* Supports the event loop (`asynchronous`): not yet

Queues, exchanges and bindings lie in the file, so every process sees the same ones. A message is
acknowledged, requeued and given back in its row: nothing is ever published again. A message is
delivered at least once, and its delivery tag is good until its lease is over (`LeaseLost`).

Transport options: see `options.Options`. In a list of URLs to fail over to they must be given as
`transport_options`: there Kombu (5.7) refuses a query behind the path.
"""

from kombu.transport import TRANSPORT_ALIASES

from sqlqueue_transport.errors import (
    Busy,
    CannotOpen,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    ForeignDatabase,
    ForkedStore,
    InvalidMessage,
    LeaseLost,
    NetworkFilesystem,
    SchemaChanged,
    SchemaTooNew,
    SqliteTooOld,
    TransportError,
    Unavailable,
    UnsafeFile,
    WorkerSwept,
)
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault, NewMessage, Outcome, Settlement, TickOf
from sqlqueue_transport.store import Store
from sqlqueue_transport.stores import close_store, open_store
from sqlqueue_transport.transport import Transport

TRANSPORT_ALIASES["sqlqueue"] = "sqlqueue_transport.transport:Transport"

__all__ = [
    "Busy",
    "CannotOpen",
    "DatabaseMissing",
    "DiskFault",
    "Event",
    "Fault",
    "FileReplaced",
    "ForeignDatabase",
    "ForkedStore",
    "InvalidMessage",
    "LeaseLost",
    "NetworkFilesystem",
    "NewMessage",
    "Outcome",
    "SchemaChanged",
    "SchemaTooNew",
    "Settlement",
    "SqliteTooOld",
    "State",
    "Store",
    "TickOf",
    "Transport",
    "TransportError",
    "Unavailable",
    "UnsafeFile",
    "WorkerSwept",
    "close_store",
    "open_store",
]
