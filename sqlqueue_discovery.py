"""Make the scheme `sqlqueue://` known to Kombu as soon as the package is installed.

Kombu (5.7) has no entry point for transports, but loads those of `kombu.serializers` when
`kombu.serialization` is imported, as every Celery program does before it connects. This module is
such an entry point. An error in it would break that import for every program of the environment,
ours or not, so it does one thing, guarded, and imports nothing of ours: the transport's own package
is loaded when somebody connects.
"""

# What Kombu registers in return: the name of a content type that has no reader and no writer.
SERIALIZER = (None, None, "application/x-sqlqueue-discovery", "utf-8")

try:
    from kombu.transport import TRANSPORT_ALIASES

    TRANSPORT_ALIASES.setdefault("sqlqueue", "sqlqueue_transport.transport:Transport")
except Exception:  # noqa: BLE001, S110 - a Kombu that has changed must still be importable
    pass
