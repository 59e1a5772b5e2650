"""What is measured, as Prometheus metrics of one service."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics; a registry of their own, so that a process may hold several services."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "jaxrec_http_requests",
            "Answers by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "jaxrec_http_request_seconds",
            "Time from a request's first byte to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_users = Histogram(
            "jaxrec_batch_users", "Users of a call to the model.", buckets=SIZES, registry=registry
        )
        self.batch_requests = Histogram(
            "jaxrec_batch_requests",
            "Requests answered by one call to the model.",
            buckets=SIZES,
            registry=registry,
        )
        self.queue = Gauge(
            "jaxrec_queue_length", "Requests that wait.", ["queue"], registry=registry
        )
        self.events = Counter(
            "jaxrec_events_appended", "Events added to states.", registry=registry
        )
        self.left_out = Counter(
            "jaxrec_events_left_out",
            "Events that were not added, by reason.",
            ["reason"],
            registry=registry,
        )
        self.repeated = Counter(
            "jaxrec_events_repeated",
            "Events that were added although a state had them (same item and time).",
            registry=registry,
        )
        self.commits = Histogram(
            "jaxrec_append_requests",
            "Appends that were made durable together.",
            buckets=SIZES,
            registry=registry,
        )
        self.deleted = Counter("jaxrec_users_deleted", "Users forgotten.", registry=registry)
        self.programs = Gauge(
            "jaxrec_compiled_programs", "Programs compiled for the model.", registry=registry
        )
        self.generation = Gauge(
            "jaxrec_store_generation", "1 at the start, and one more per swap.", registry=registry
        )
        self.ready = Gauge("jaxrec_ready", "1 while requests are answered.", registry=registry)
