"""The relay as an unmodified nostr-sdk (the rust-nostr client, by its Python package) sees it.

SKEP_BIN names the binary. Each test class runs a relay of its own; nothing waits by sleeping for a fixed time.
"""

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
import unittest
import urllib.request
from datetime import timedelta
from pathlib import Path

from nostr_sdk import (
    AckPolicy, Client, ClientBuilder, ClientMessage, ClientNotification, Event, EventBuilder, Filter, Keys, Kind, Nip44Version, NostrLmdb,
    NostrSdkError, PublicKey, RelayInformationDocument, RelayUrl, ReqTarget, SecretKey, SignerAuthenticator, SyncDirection,
    SyncOptions, Tag, Timestamp, UnwrappedGift, Authenticator, nip04_decrypt, nip04_encrypt, nip17_make_private_msg, nip44_decrypt,
    nip44_encrypt, uniffi_set_event_loop,
)

READY = re.compile(r"^listening (ws://127\.0\.0\.1:\d+)/? pubkey=([0-9a-f]{64})$")
PATIENCE = timedelta(seconds=60)  # for what must come, on a machine of any speed
LATE = 90  # seconds, around what has that patience


class Relay:
    """The real process. It is waited for by its ready line and ended by its pid."""

    async def start(self) -> "Relay":
        binary = os.environ["SKEP_BIN"]
        self.home = Path(tempfile.mkdtemp(prefix="skep-clients-"))
        config = self.home / "skep.toml"
        config.write_text('[relay]\nname = "t"\nclosed = false\nmembers = []\nadmins = []\nsearch = true\n'
                          "[relay.limits]\nconnections_per_ip = 1000\n")
        self.log = (self.home / "stderr").open("wb")
        self.process = await asyncio.create_subprocess_exec(
            binary, "relay", "--listen", "127.0.0.1:0", "--data", str(self.home / "data"), "--config", str(config),
            stdout=asyncio.subprocess.PIPE, stderr=self.log, env={**os.environ, "HOME": str(self.home)})
        line = (await asyncio.wait_for(self.process.stdout.readline(), LATE)).decode().rstrip("\n")
        match = READY.match(line)
        if not match:
            await self.stop()
            raise AssertionError(f"not the ready line: {line!r}")
        self.address, self.pubkey = match.groups()
        self.url = RelayUrl.parse(self.address)
        return self

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class AttestedAuthenticator(Authenticator):
    """Signs in as an agent and shows the attestation of its owner (NIP-OA)."""

    def __init__(self, keys: Keys, attestation: Tag):
        self.keys, self.attestation = keys, attestation

    async def make_auth_event(self, relay_url, challenge):
        tags = [Tag.parse(["relay", str(relay_url)]), Tag.parse(["challenge", challenge]), self.attestation]
        return EventBuilder(Kind(22242), "").tags(tags).finalize(self.keys)


def attest(owner: Keys, agent: PublicKey, conditions: str = "") -> Tag:
    digest = hashlib.sha256(f"nostr:agent-auth:{agent.to_hex()}:{conditions}".encode()).digest()
    return Tag.parse(["auth", owner.public_key().to_hex(), conditions, owner.sign_schnorr(digest)])


def note(keys: Keys, kind: int = 1, content: str = "", tags: list = (), created_at: int | None = None) -> Event:
    builder = EventBuilder(Kind(kind), content).tags([Tag.parse(list(t)) for t in tags])
    if created_at is not None:
        builder = builder.custom_created_at(Timestamp.from_secs(created_at))
    return builder.finalize(keys)


def now() -> int:
    return int(time.time())


def ids(events) -> set:
    return {(e.id() if isinstance(e, Event) else e).to_hex() for e in events}


class RelayTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        loop = asyncio.get_running_loop()
        loop.set_debug(False)  # its Rust side drops futures with a plain call_soon, which debug mode reports each time
        uniffi_set_event_loop(loop)  # so that its Rust side may call our authenticators
        self.relay = await Relay().start()
        self.addAsyncCleanup(self.relay.stop)

    async def client(self, keys: Keys | None = None, authenticator=None, database=None) -> Client:
        """A connected client; with `keys` it answers the relay's challenge by itself."""
        builder = ClientBuilder().database(database) if database else ClientBuilder()
        if authenticator or keys:
            builder = builder.authenticator(authenticator or SignerAuthenticator(keys))
        client = builder.build()
        self.addAsyncCleanup(client.shutdown)
        await client.add_relay(self.relay.url)
        await client.connect(and_wait=PATIENCE)
        return client

    async def signed_in(self, keys: Keys, authenticator=None) -> Client:
        """Connected, and surely authenticated: only an authenticated author may publish a protected event.

        Told auth-required, nostr-sdk sends it again once it has signed in; but where it has signed in just before it
        waits for that, it waits in vain and says so. Then it is asked again."""
        client, proof = await self.client(keys, authenticator), note(keys, 7777, "signed in", [["-"]])
        deadline = time.monotonic() + LATE
        while (error := await self.send(client, proof)) == "timeout":
            self.assertLess(time.monotonic(), deadline)
        self.assertIsNone(error)
        return client

    async def put(self, client: Client, *events: Event) -> Event:
        for event in events:
            error = await self.send(client, event)
            self.assertIsNone(error, f"kind {event.kind().as_u16()}")
        return events[-1]

    async def send(self, client: Client, event: Event) -> str | None:
        """The relay's reason for a refusal, or None."""
        output = await client.send_event(event, ack_policy=AckPolicy.all(), ok_timeout=PATIENCE)
        return next(iter(output.failed.values()), None)

    async def fetch(self, client: Client, filter: Filter) -> list[Event]:
        relay = await client.relay(self.relay.url)
        return await asyncio.wait_for(relay.fetch_events(filter, timeout=PATIENCE), LATE)

    async def count(self, client: Client, filter: Filter) -> int:
        """By message: nostr-sdk's own `count_events` sends before it listens, and misses an answer that comes at once."""
        self.counts = getattr(self, "counts", 0) + 1
        stream, query = client.notifications(), f"count-{self.counts}"

        async def answer() -> int:
            while True:
                notification = await stream.next()
                if not isinstance(notification, ClientNotification.MESSAGE):
                    continue
                verb, subject, *rest = json.loads(notification.message.as_json())
                if subject == query:
                    self.assertEqual(verb, "COUNT", rest)
                    return rest[0]["count"]

        await (await client.relay(self.relay.url)).send_msg(ClientMessage.count(query, filter))
        return await asyncio.wait_for(answer(), LATE)

    async def assertRefused(self, prefix: str, client: Client, event: Event):
        reason = await self.send(client, event)
        self.assertIsNotNone(reason, "was accepted")
        self.assertIn(prefix, reason)

    async def assertShows(self, client: Client, event: Event, *filters: Filter):
        for f in filters:
            self.assertIn(event.id().to_hex(), ids(await self.fetch(client, f)), f.as_json())
            self.assertGreaterEqual(await self.count(client, f), 1, f.as_json())

    async def assertHides(self, client: Client, event: Event, *filters: Filter):
        """Not there, or the question is refused; and COUNT tells no more. (For a refused COUNT nostr-sdk waits in vain.)"""
        for f in filters:
            try:
                shown = await self.fetch(client, f)
            except NostrSdkError as refusal:
                self.assertIn("auth-required:", str(refusal))
                continue
            self.assertNotIn(event.id().to_hex(), ids(shown), f.as_json())
            self.assertEqual(await self.count(client, f), len(shown), f.as_json())


class Live:
    """What a subscription is sent, in order. A marker shows that nothing before it was missed."""

    def __init__(self, client: Client):
        self.stream = client.notifications()
        self.seen = []

    async def up_to(self, marker: Event) -> set:
        async def read():
            while marker.id().to_hex() not in self.seen:
                notification = await self.stream.next()
                if isinstance(notification, ClientNotification.NEW_EVENT):
                    self.seen.append(notification.event.id().to_hex())
        await asyncio.wait_for(read(), LATE)
        return set(self.seen)


class Events(RelayTest):
    async def test_a_published_event_is_served_as_it_was_signed(self):
        keys = Keys.generate()
        event = note(keys, content='line\n"quote" \\ 🐝', tags=[["t", "hive"], ["alt"]])
        await self.put(await self.client(), event)
        [got] = await self.fetch(await self.client(), Filter().author(keys.public_key()))
        self.assertEqual(json.loads(got.as_json()), json.loads(event.as_json()))
        self.assertTrue(got.verify())

    async def test_a_subscription_gets_stored_and_live_events(self):
        keys, reader, writer = Keys.generate(), await self.client(), await self.client()
        stored = await self.put(writer, note(keys, content="stored"))
        live = Live(reader)
        await reader.subscribe(ReqTarget.auto([Filter().author(keys.public_key())]))
        await live.up_to(stored)
        event = await self.put(writer, note(keys, content="live"))
        self.assertEqual(await live.up_to(event), ids([stored, event]))

    async def test_a_replaced_event_is_served_in_its_newest_version_only_tie_by_lowest_id(self):
        keys, client, t = Keys.generate(), await self.client(), now() - 60
        versions = [note(keys, 10002, c, created_at=at) for c, at in (("a", t), ("b", t + 2), ("c", t + 2), ("d", t + 1))]
        for version in versions:
            await self.send(client, version)
        best = min(versions[1:3], key=lambda e: e.id().to_hex())
        self.assertEqual(ids(await self.fetch(client, Filter().author(keys.public_key()))), ids([best]))

    async def test_two_301_character_d_values_that_differ_at_the_end_are_two_addresses(self):
        keys, client = Keys.generate(), await self.client()
        a, b = (note(keys, 30078, tags=[["d", "d" * 300 + end]]) for end in "ab")
        await self.put(client, a, b)
        self.assertEqual(ids(await self.fetch(client, Filter().author(keys.public_key()))), ids([a, b]))
        self.assertEqual(ids(await self.fetch(client, Filter().identifier("d" * 300 + "b"))), ids([b]))

    async def test_only_the_author_deletes_and_a_deleted_event_cannot_come_back(self):
        keys, client = Keys.generate(), await self.client()
        event, page = note(keys), note(keys, 30023, tags=[["d", "x"]], created_at=now() - 9)
        await self.put(client, event, page)
        targets = [["e", event.id().to_hex()], ["a", f"30023:{keys.public_key().to_hex()}:x"]]
        await self.send(client, note(Keys.generate(), 5, tags=targets))
        self.assertEqual(ids(await self.fetch(client, Filter().author(keys.public_key()))), ids([event, page]))
        deletion = await self.put(client, note(keys, 5, tags=targets, created_at=now() - 5))
        self.assertEqual(ids(await self.fetch(client, Filter().author(keys.public_key()))), ids([deletion]))
        for gone in (event, page):
            self.assertIsNotNone(await self.send(client, gone))
        newer = await self.put(client, note(keys, 30023, tags=[["d", "x"]]))
        self.assertEqual(ids(await self.fetch(client, Filter().kind(Kind(30023)))), ids([newer]))

    async def test_an_event_stops_being_served_at_its_expiration(self):
        keys, client, seconds = Keys.generate(), await self.client(), 3
        while True:
            expires = now() + seconds
            event = note(keys, tags=[["expiration", str(expires)]])
            refusal, served = await self.send(client, event), ids(await self.fetch(client, Filter().id(event.id())))
            if now() < expires:
                break
            seconds *= 2  # this machine was too slow to see it before its time
            self.assertLess(seconds, 100)
        self.assertEqual((refusal, served), (None, ids([event])))
        while now() <= expires:
            await asyncio.sleep(0.1)
        self.assertEqual(await self.fetch(client, Filter().id(event.id())), [])
        self.assertEqual(await self.count(client, Filter().author(keys.public_key())), 0)

    async def test_an_ephemeral_event_is_delivered_and_not_stored(self):
        keys, reader, writer = Keys.generate(), await self.client(), await self.client()
        live = Live(reader)
        await reader.subscribe(ReqTarget.auto([Filter().author(keys.public_key())]))
        await self.fetch(reader, Filter().author(keys.public_key()))  # the REQ before it is in force now
        event = await self.put(writer, note(keys, 21111))
        await live.up_to(event)
        self.assertEqual(await self.fetch(writer, Filter().author(keys.public_key())), [])

    async def test_count_and_search(self):
        keys, client, word = Keys.generate(), await self.client(), "zxq" + Keys.generate().public_key().to_hex()[:12]
        found = note(keys, content=f"the {word} hums")
        await self.put(client, found, *(note(keys, content=f"{n}") for n in range(9)))
        self.assertEqual(await self.count(client, Filter().author(keys.public_key())), 10)
        self.assertEqual(ids(await self.fetch(client, Filter().search(word))), ids([found]))

    async def test_the_information_document_parses(self):
        url = self.relay.address.replace("ws://", "http://")
        request = urllib.request.Request(url, headers={"Accept": "application/nostr+json"})
        with await asyncio.to_thread(urllib.request.urlopen, request, timeout=LATE) as answer:
            body = answer.read()
        document = RelayInformationDocument.from_json(body.decode())
        self.assertEqual(document.name(), "t")
        self.assertIn(77, document.supported_nips())


class Negentropy(RelayTest):
    async def test_client_sync_leaves_both_sides_with_everything(self):
        keys = Keys.generate()
        database = await NostrLmdb.open(str(self.relay.home / "sdk"))
        writer, client = await self.client(), await self.client(database=database)
        events = [note(keys, content=str(n), created_at=now() - n) for n in range(120)]
        await self.put(writer, *events[:80])
        for event in events[40:]:
            await client.database().save_event(event)
        options = SyncOptions().direction(SyncDirection.BOTH).initial_timeout(PATIENCE)
        output = await client.sync(Filter().author(keys.public_key()), opts=options)
        self.assertEqual(output.failed, {})
        self.assertEqual(ids(output.report.received), ids(events[:40]))
        self.assertEqual(ids(output.report.sent), ids(events[80:]))
        self.assertEqual(ids(await self.fetch(writer, Filter().author(keys.public_key()))), ids(events))
        again = await client.sync(Filter().author(keys.public_key()), opts=options)
        self.assertEqual((again.report.received, again.report.sent), ({}, {}))

    async def test_a_gated_id_is_reconciled_with_its_reader_only(self):
        sender, receiver, writer = Keys.generate(), Keys.generate(), await self.client()
        plain = note(sender)
        mail = note(sender, 4, "x?iv=y", [["p", receiver.public_key().to_hex()]])
        await self.put(writer, plain, mail)
        options = SyncOptions().direction(SyncDirection.DOWN).dry_run().initial_timeout(PATIENCE)
        for keys, expected in ((None, [plain]), (Keys.generate(), [plain]), (receiver, [plain, mail]), (sender, [plain, mail])):
            client = await (self.signed_in(keys) if keys else self.client())
            output = await client.sync(Filter().author(sender.public_key()).kinds([Kind(1), Kind(4)]), opts=options)
            self.assertEqual(output.failed, {})
            self.assertEqual(ids(output.report.remote), ids(expected))


class Access(RelayTest):
    async def test_a_protected_event_is_taken_from_its_authenticated_author_only(self):
        author = Keys.generate()
        event = note(author, tags=[["-"]])
        await self.assertRefused("auth-required:", await self.client(), event)
        await self.assertRefused("restricted:", await self.signed_in(Keys.generate()), event)
        await self.put(await self.signed_in(author), event)

    async def test_a_nip17_message_reaches_its_receiver_alone_on_every_path(self):
        sender, receiver = Keys.generate(), Keys.generate()
        wrap = nip17_make_private_msg(sender, receiver.public_key(), "for you")
        filters = [Filter().kind(Kind(1059)).pubkey(receiver.public_key()), Filter().id(wrap.id()), Filter().pubkey(receiver.public_key()),
                   Filter().author(wrap.author())]
        outsiders = [await self.client(), await self.signed_in(Keys.generate()), await self.signed_in(sender)]
        reader = await self.signed_in(receiver)
        listeners = []
        for client in (*outsiders, reader):
            listeners.append(Live(client))
            await client.subscribe(ReqTarget.auto([Filter().pubkey(receiver.public_key())]))
            await self.fetch(client, Filter().kind(Kind(1)).limit(1))
        writer = await self.client()  # nostr-sdk does not report to a client what that client sent
        await self.put(writer, wrap)
        marker = await self.put(writer, note(sender, tags=[["p", receiver.public_key().to_hex()]]))
        got = [wrap.id().to_hex() in await live.up_to(marker) for live in listeners]
        self.assertEqual(got, [False, False, False, True])
        for client in outsiders:
            await self.assertHides(client, wrap, *filters)
        await self.assertShows(reader, wrap, *filters)
        gift = UnwrappedGift.from_gift_wrap(receiver, (await self.fetch(reader, filters[1]))[0])
        self.assertEqual((gift.rumor().content(), gift.sender().to_hex()), ("for you", sender.public_key().to_hex()))

    async def test_a_nip04_message_reaches_its_two_parties_alone(self):
        sender, receiver = Keys.generate(), Keys.generate()
        content = nip04_encrypt(sender.secret_key(), receiver.public_key(), "old style")
        event = note(sender, 4, content, [["p", receiver.public_key().to_hex()]])
        await self.put(await self.client(), event)
        filters = [Filter().kind(Kind(4)).author(sender.public_key()), Filter().id(event.id()), Filter().author(sender.public_key())]
        for party in (sender, receiver):
            await self.assertShows(await self.signed_in(party), event, *filters)
        for client in (await self.client(), await self.signed_in(Keys.generate())):
            await self.assertHides(client, event, *filters)
        self.assertEqual(nip04_decrypt(receiver.secret_key(), sender.public_key(), event.content()), "old style")

    async def test_a_turn_metric_is_taken_from_an_attested_agent_and_read_by_its_owner_alone(self):
        owner, agent = Keys.generate(), Keys.generate()
        content = agent.nip44_encrypt(owner.public_key(), '{"harness":"t","timestamp":"2026-01-01T00:00:00Z"}')
        event = note(agent, 44200, content, [["p", owner.public_key().to_hex()], ["agent", agent.public_key().to_hex()]])
        await self.assertRefused("auth-required:", await self.client(), event)
        await self.assertRefused("restricted:", await self.signed_in(agent), event)
        attested = AttestedAuthenticator(agent, attest(owner, agent.public_key()))
        await self.put(await self.signed_in(agent, attested), event)
        filters = [Filter().kind(Kind(44200)), Filter().id(event.id()), Filter().author(agent.public_key()).kind(Kind(44200)),
                   Filter().pubkey(owner.public_key())]
        reader = await self.signed_in(owner)
        await self.assertShows(reader, event, *filters)
        self.assertIn("harness", owner.nip44_decrypt(agent.public_key(), (await self.fetch(reader, filters[1]))[0].content()))
        for client in (await self.client(), await self.signed_in(Keys.generate()), await self.signed_in(agent)):
            await self.assertHides(client, event, *filters)


class Encryption(unittest.TestCase):
    def test_what_nostr_tools_encrypts_by_nip44_nostr_sdk_opens(self):
        one, two = SecretKey.parse("1".rjust(64, "0")), SecretKey.parse("2".rjust(64, "0"))
        payload = "AgcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHWuPE4TCAFAAFxrp6RXyq0dog27N+nN09bTH4f+pgueGG4yYGWM7OGuCAAiJCJSn0FcUixvZUz821TPZriyYPCIx3"
        self.assertEqual(nip44_decrypt(two, Keys.parse("1".rjust(64, "0")).public_key(), payload), "from nostr-tools ü")
        reply = nip44_encrypt(two, Keys.parse("1".rjust(64, "0")).public_key(), "reply", Nip44Version.V2)
        self.assertEqual(nip44_decrypt(one, Keys.parse("2".rjust(64, "0")).public_key(), reply), "reply")


if __name__ == "__main__":
    unittest.main()
