"""A Kombu transport in one SQLite file: `sqlqueue:///relative.db`, `sqlqueue:////absolute.db`.

Importing this package registers the URL scheme with Kombu; that is all that happens at import.

Features
========
* Type: virtual (one file, many processes, one machine)
* Supports direct exchanges and the default exchange: yes
* Supports topic exchanges: yes, `*` for one word, `#` for any number
* Supports fanout exchanges: yes
* Supports headers exchanges: no, refused with 540
* Supports binding exchanges to exchanges: no
* Supports priorities: yes, 0 to 9, higher first; `x-max-priority` cuts
* Supports `eta` held by the broker: yes (`hold_eta`)
* Supports `expiration` and `x-message-ttl`: yes, with or without a consumer
* Supports the `expires` header of jobs: yes, except for plain consumers, which end it themselves
* Supports `x-expires`, auto-delete and exclusive queues: yes, gone within two seconds
* Supports `x-max-length`: yes, drops the oldest; `x-overflow: reject-publish` refuses instead
* Supports `x-max-length-bytes`: no, stored and not acted on
* Supports `x-dead-letter-exchange` and `x-dead-letter-routing-key`: yes, the row moves
* Supports a limit of deliveries: yes (`max_deliveries`)
* Supports prefetch counts: yes, of a consumer and of a channel; 0 means `max_prefetch`
* Supports visibility timeouts: yes (`visibility_timeout`), extended while the consumer lives
* Supports batches (`Producer.batch`): yes, one transaction a flush
* Supports the event loop (`asynchronous`): yes, by a descriptor, not by polling
* Supports heartbeats: no, a process's end is told by the kernel
* Supports gevent: yes
* Supports eventlet: no, refused when connecting

Queues, exchanges, bindings and consumers lie in the file, so every process sees the same ones. A
message is acknowledged, requeued and given back in its row: nothing is ever published again. A
message is delivered at least once, and its delivery tag is good until its lease is over
(`LeaseLost`). Jobs, which have a `task` in their headers, stay in the file as history
(`retention_done`); other messages are deleted when they are done. AMQP's transient messages
(`delivery_mode` 1) survive a kill, not a power cut.

Transport options: see `options.Options`. In a list of URLs to fail over to they must be given as
`transport_options`: there Kombu (5.7) refuses a query behind the path.
"""

from kombu.transport import TRANSPORT_ALIASES

from sqlqueue_transport.errors import (
    BackupRefused,
    Busy,
    CannotOpen,
    DatabaseEmpty,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    ForeignDatabase,
    ForkedStore,
    InvalidMessage,
    LeaseLost,
    NetworkFilesystem,
    ReadOnlyStore,
    SchemaChanged,
    SchemaTooNew,
    SchemaTooOld,
    SqliteTooOld,
    TransportError,
    Unavailable,
    UnsafeFile,
    WorkerSwept,
)
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault, NewMessage, Outcome, Settlement, TickAnswer, TickOf
from sqlqueue_transport.store import Store
from sqlqueue_transport.stores import close_store, open_store
from sqlqueue_transport.transport import Transport

TRANSPORT_ALIASES["sqlqueue"] = "sqlqueue_transport.transport:Transport"

__all__ = [
    "BackupRefused",
    "Busy",
    "CannotOpen",
    "DatabaseEmpty",
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
    "ReadOnlyStore",
    "SchemaChanged",
    "SchemaTooNew",
    "SchemaTooOld",
    "Settlement",
    "SqliteTooOld",
    "State",
    "Store",
    "TickAnswer",
    "TickOf",
    "Transport",
    "TransportError",
    "Unavailable",
    "UnsafeFile",
    "WorkerSwept",
    "close_store",
    "open_store",
]
