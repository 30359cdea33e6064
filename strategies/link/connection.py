"""One party's connection to the mail router: outwards only, and for ever.

Nobody who publishes ever waits for the network: what is published lies in an outbox until a thread
has sent it. Mail that a newer one overtakes there is not sent at all, so a slow link gets less mail
and not older mail.
"""

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from strategies.link.outbox import Outbox
from strategies.link.transport import MESSAGE_LIMIT, configuration, import_zenoh, open_session
from strategies.site import Site

Callback = Callable[[str, bytes], object]

_log = logging.getLogger(__name__)
_RETRY_SECONDS = (0.5, 4.0)  # between attempts to connect at first: from, to
_LINGER_SECONDS = 5.0  # that `close` gives to what is still in the outbox
_URGENT_LIMIT = 1000  # of urgent messages in the outbox
_NAME = "mail router"  # of threads


class Connection:
    """A session of `site` with the mail router, which may come later and may be restarted.

    dropped: messages that were not sent, for there was no connection, they were too large, or the
    session did not take them.
    failed: calls of callbacks that raised. Raises EdgeFlError where Zenoh is not installed.
    """

    def __init__(self, site: Site) -> None:
        self._zenoh = import_zenoh()
        self._site = site
        self._session: Any = None
        self._changed = threading.Condition()
        self._urgent, self._sure, self._mail = Outbox(_URGENT_LIMIT), Outbox(), Outbox()
        self._subscriptions: dict[int, tuple[str, Any]] = {}  # number -> (expression, callback)
        self._subscribers: dict[int, Any] = {}
        self._count = 0
        self._closed = False
        self.dropped = self.failed = 0
        self._lost = False  # something that was in the outbox
        self._thread = threading.Thread(target=self._work, name=_NAME, daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the router is there; at most transport.LEASE_SECONDS after it is not."""
        session = self._session
        return session is not None and not self._closed and bool(session.info.routers_zid())

    def publish(
        self,
        key: str,
        payload: bytes,
        *,
        urgent: bool = False,
        sure: bool = False,
        kind: str = "",
    ) -> bool:
        """Send `payload` as soon as the link takes it; False if it was dropped instead.

        Of mail only the newest of each key and kind is sent. What is urgent is sent first, all of
        it and in its order; with a kind, only the newest of each key and kind, too, so that who
        makes this party answer again and again cannot fill its outbox. What is sure is sent whole,
        however long that takes, in its order and the newest of each key and kind; what is urgent
        overtakes it. True does not mean that it arrived: links can be cut.
        """
        connected = self.connected
        with self._changed:
            outbox = self._urgent if urgent else self._sure if sure else self._mail
            fits = connected and len(payload) <= MESSAGE_LIMIT
            if not (fits and outbox.put(key, payload, kind or (None if urgent else ""))):
                self.dropped += 1
                return False
            self._changed.notify_all()
        return True

    def subscribe(self, expression: str, callback: Callback) -> Callable[[], None]:
        """Call callback(key, payload) with what comes, until the function that is returned is
        called. The calls come from a thread of Zenoh's, which reads nothing else meanwhile: so
        that a flood waits in the network and not in memory, and a callback must be quick.
        """

        def hear(sample: Any) -> None:
            try:
                callback(str(sample.key_expr), sample.payload.to_bytes())
            except Exception:
                self.failed += 1
                _log.exception("what came for %s could not be taken", sample.key_expr)

        handler = self._zenoh.handlers.Callback(hear, indirect=False)
        with self._changed:
            self._count += 1
            number = self._count
            self._subscriptions[number] = (expression, handler)
            if self._session is not None:
                self._declare(number)

        def end() -> None:
            with self._changed:
                self._subscriptions.pop(number, None)
                subscriber = self._subscribers.pop(number, None)
            if subscriber is not None and not self._closed:
                subscriber.undeclare()

        return end

    @property
    def overtaken(self) -> int:
        """Messages that a newer one of the same key and kind replaced before they were sent."""
        return sum(box.overtaken for box in (self._urgent, self._sure, self._mail))

    def fault(self) -> str:
        """Why there may be no connection, found out by an attempt of its own, which may take some
        seconds; "" if there is nothing wrong with the way to the router."""
        return link_fault(self._site)

    def close(self) -> None:
        """Send what is in the outbox, if there is a connection, and end it."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_LINGER_SECONDS)
        if self._session is not None:
            self._session.close()

    # -- the threads -----------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._open():
            return
        # Beside each other and each with a priority of its own, so that a reply or a mail that is
        # long on its way holds up no heartbeat. Mail that the router cannot get rid of must not
        # hold up all that follows.
        control, priority = self._zenoh.CongestionControl, self._zenoh.Priority
        threads = [
            threading.Thread(target=self._send, args=lane, name=_NAME, daemon=True)
            for lane in (
                (self._urgent, control.BLOCK, priority.INTERACTIVE_HIGH),
                (self._sure, control.BLOCK, priority.DATA_HIGH),
                (self._mail, control.DROP, priority.DATA),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _send(self, outbox: Outbox, control: Any, priority: Any) -> None:
        zenoh = self._zenoh
        while (message := self._next(outbox)) is not None:
            try:
                self._session.put(*message, congestion_control=control, priority=priority)
            except zenoh.ZError as error:
                self._lose(message[0], error)

    def _lose(self, key: str, error: Exception) -> None:
        """Count what the session did not take after all, and tell of the first."""
        with self._changed:
            self.dropped += 1
            first, self._lost = not self._lost, True
        if first and not self._closed:
            _log.warning("%s could not be sent (more of it is only counted): %s", key, error)

    def _open(self) -> bool:
        """Open the session, however long the router takes to come. From then on Zenoh itself
        connects again whenever the link is lost, and declares the subscriptions again."""
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                session = open_session(configuration(self._site, "connect"))
                break
            except self._zenoh.ZError as error:
                _log.debug("no mail router at %s yet: %s", self._site.endpoint, error)
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, pause):
                    return False
            pause = min(2 * pause, longest)
        with self._changed:
            self._session = session
            for number in self._subscriptions:
                self._declare(number)
        return True

    def _declare(self, number: int) -> None:
        expression, handler = self._subscriptions[number]
        self._subscribers[number] = self._session.declare_subscriber(expression, handler)

    def _next(self, outbox: Outbox) -> tuple[str, bytes] | None:
        """What to send next; None when the connection is closed and all is sent."""
        with self._changed:
            self._changed.wait_for(lambda: outbox or self._closed)
            return outbox.take()


def link_fault(site: Site, patience: float = 5.0) -> str:
    """Why `site` cannot connect to the mail router, or "" if it can as far as TCP and TLS go.

    Zenoh says it in its own log alone, and in words of its own.
    """
    where = f"the mail router at {site.endpoint}"
    try:
        with socket.create_connection((site.host, site.mail_port), patience) as raw:
            if site.credentials is None:
                return ""
            context = ssl.create_default_context(cafile=str(site.credentials.authority))
            context.load_cert_chain(site.credentials.certificate, site.credentials.key)
            with context.wrap_socket(raw, server_hostname=site.host) as link:
                # With TLS 1.3 a refusal of one's own certificate comes after the handshake.
                link.settimeout(1.0)
                with contextlib.suppress(TimeoutError):
                    link.recv(1)
    except ssl.SSLCertVerificationError as error:
        return f"{where} has a certificate that is not trusted here: {error.verify_message}"
    except ssl.SSLError as error:
        return f"{where} does not take the certificate in {site.directory}: {error.reason}"
    except OSError as error:
        return f"{where} cannot be reached: {error}"
    return ""
