//! One WebSocket connection: one task, which owns the socket, the session, the running queries and nothing else.
//!
//! Life: greeting → loop of (send what is ready, then wait for the socket, the outbox, a timer or the next slice)
//! → close frame. Must not: decide (the session does), or wait for anything without a bound.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use skep_core::door::{Accepted, Origin};
use skep_core::intake::Deliverer;
use skep_core::may_read;
use skep_core::session::{Cut, Effect, Session};
use skep_core::subs::{ConnId, Indexing};
use skep_core::world::Ownership;
use skep_proto::wire::{self, SubId};
use skep_proto::{Filter, Prefix, PubKey, RawEvent, Seq, limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use crate::fanout;
use crate::neg::Negotiation;
use crate::outbox::Outbox;
use crate::scans::{Ended, Scans};
use crate::sequence::Sequence;
use crate::shared::{Shared, random, unix_now};
use crate::verify::{Job, Verdict, event_bytes};

/// Messages read in a row before what they led to is sent.
const READ_IN_A_ROW_MAX: usize = 64;

/// Bytes sent in a row before the socket is read again.
const SEND_IN_A_ROW_BYTES: usize = 64 * limits::KIB;

/// Queries that one connection may have running; then it is read no further.
const SCANS_MAX: usize = 64;

/// Pings without an answer before the connection is cut.
const MISSES_MAX: u32 = 2;

/// Until a store that could not be read is read again for a reader who fell behind.
const CATCH_UP_AGAIN: Duration = Duration::from_millis(100);

/// Time for the last words to a client that may not read them.
const GOODBYE: Duration = Duration::from_secs(1);

struct Conn {
    shared: Arc<Shared>,
    id: ConnId,
    ip: IpAddr,
    session: Session,
    from: Arc<Deliverer>,
    outbox: Arc<Outbox>,
    in_flight: Arc<AtomicUsize>,
    subs: AHashMap<SubId, Sub>,
    scans: Scans,
    negs: AHashMap<SubId, Negotiation>,
    /// Events read and not yet given to the pool.
    events: Vec<RawEvent>,
    /// The order in which they reach the writer.
    sequence: Sequence,
    /// What they add to `in_flight`.
    events_bytes: usize,
    /// Messages to be sent now.
    out: Vec<Utf8Bytes>,
    effects: Vec<Effect>,
    misses: u32,
    /// When the client was heard or pinged last.
    waited_since: Instant,
}

/// What is needed to go on from the store when live delivery fell behind.
struct Sub {
    quoted: Arc<str>,
    filters: Arc<[Filter]>,
    after: Seq,
}

/// Why the loop ended.
enum End {
    /// The client closed, or the socket broke.
    Gone,
    Cut(Cut),
}

/// Serves a connection until it ends; says why, if it was cut.
pub(crate) async fn run<S>(shared: Arc<Shared>, mut socket: WebSocketStream<S>, ip: IpAddr) -> Option<Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let id = shared.next_conn.fetch_add(1, Ordering::Relaxed);
    let outbox = Arc::new(Outbox::default());
    let challenge = faster_hex::hex_string(&random()[..16]);
    let session = Session::new(&shared.world(), shared.now(), challenge);
    shared.live().subs.open(id, Arc::clone(&outbox));
    shared.metrics.connected.inc();
    shared.metrics.connections.inc();
    let mut conn = Conn {
        out: vec![session.greeting().into()],
        shared: Arc::clone(&shared),
        id,
        ip,
        session,
        from: Arc::default(),
        outbox,
        in_flight: Arc::default(),
        subs: AHashMap::new(),
        scans: Scans::default(),
        negs: AHashMap::new(),
        events: Vec::new(),
        sequence: Sequence::default(),
        events_bytes: 0,
        effects: Vec::new(),
        misses: 0,
        waited_since: Instant::now(),
    };
    let end = conn.serve(&mut socket).await;
    let subs = shared.live().subs.close(id);
    for work in subs {
        index(&shared, work).await;
    }
    shared.metrics.connections.dec();
    match end {
        // Answers the client's close frame, if there was one.
        End::Gone => {
            let _ = timeout(GOODBYE, socket.flush()).await;
            None
        }
        End::Cut(cut) => {
            shared.metrics.count_cut(cut);
            tracing::debug!(conn = id, reason = cut.as_str(), "cut");
            say_goodbye(&mut socket, cut).await;
            Some(cut)
        }
    }
}

/// Puts a subscription into the index, or takes it out, in parts; all but the first on the slow lane.
async fn index(shared: &Arc<Shared>, mut work: Indexing) {
    let mut is_done = shared.live().subs.index(&mut work, limits::INDEX_VALUES_MAX);
    while !is_done {
        let there = Arc::clone(shared);
        let some = move || {
            for _ in 0..limits::SLOW_PARTS {
                if there.live().subs.index(&mut work, limits::INDEX_VALUES_MAX) {
                    return (work, true);
                }
                // As between two slices of a query.
                std::thread::yield_now();
            }
            (work, false)
        };
        // Nothing comes back when the relay stops, and the index with it.
        let Some(back) = shared.lane.run(some).await else { return };
        (work, is_done) = back;
    }
}

/// A NOTICE and a close frame, if the socket takes them at once.
async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>, cut: Cut) {
    let code = match cut {
        Cut::Shutdown => CloseCode::Away,
        Cut::FrameTooLarge => CloseCode::Size,
        Cut::Protocol => CloseCode::Protocol,
        Cut::Utf8 => CloseCode::Invalid,
        _ => CloseCode::Policy,
    };
    let frame = CloseFrame { code, reason: cut.as_str().into() };
    let _ = timeout(GOODBYE, async {
        let _ = socket.send(Message::Text(wire::notice(&format!("closing: {}", cut.as_str())).into())).await;
        let _ = socket.close(Some(frame)).await;
    })
    .await;
}

impl Conn {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut WebSocketStream<S>) -> End {
        let stop = self.shared.stop.clone();
        let outbox = Arc::clone(&self.outbox);
        let timer = sleep_until(self.next_tick());
        tokio::pin!(timer);
        // A client that takes nothing must not make the relay wait when it stops.
        let hurry = {
            let stop = stop.clone();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(GOODBYE).await;
            }
        };
        tokio::pin!(hurry);
        loop {
            let sent = tokio::select! {
                biased;
                sent = self.send(socket) => sent,
                () = hurry.as_mut() => Err(End::Cut(Cut::Shutdown)),
            };
            if let Err(end) = sent {
                return end;
            }
            let is_busy = !self.scans.is_empty() || !outbox.is_empty() || outbox.behind().is_some();
            let may_read =
                self.in_flight.load(Ordering::Acquire) < limits::IN_FLIGHT_BYTES_MAX && self.scans.len() < SCANS_MAX;
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Some(End::Cut(Cut::Shutdown)),
                message = socket.next(), if may_read => self.handle_messages(message, socket).await,
                () = outbox.woken() => None,
                () = timer.as_mut() => self.tick(timer.as_mut()),
                () = tokio::task::yield_now(), if is_busy => None,
            };
            if let Some(end) = ended {
                // What was said before the end (a refusal, mostly) is still worth sending.
                let _ = self.send(socket).await;
                return end;
            }
            outbox.take(SEND_IN_A_ROW_BYTES, &mut self.out);
            self.step().await;
        }
    }

    /// Sends everything in `out`. A socket that takes nothing for too long ends the connection.
    async fn send<S: AsyncRead + AsyncWrite + Unpin>(&mut self, socket: &mut WebSocketStream<S>) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        // For each message, so that a reader that is slow but reads is not cut.
        let stall = Duration::from_secs(limits::OUTBOX_STALL_SECS);
        for text in self.out.drain(..) {
            let is_ping = text == PING;
            let message = if is_ping { Message::Ping(Bytes::new()) } else { Message::Text(text) };
            sent(timeout(stall, socket.feed(message)).await)?;
        }
        sent(timeout(stall, socket.flush()).await)
    }

    /// The first message and those that have already arrived after it.
    async fn handle_messages<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        first: Option<Result<Message, WsError>>,
        socket: &mut WebSocketStream<S>,
    ) -> Option<End> {
        let started = Instant::now();
        let is_late = || started.elapsed() >= Duration::from_micros(limits::TURN_MICROS_MAX);
        let mut ended = self.handle_message(first).await;
        for _ in 1..READ_IN_A_ROW_MAX {
            let is_full = self.in_flight.load(Ordering::Acquire) >= limits::IN_FLIGHT_BYTES_MAX;
            if ended.is_some() || is_full || is_late() || self.scans.len() >= SCANS_MAX {
                break;
            }
            // What is taken off the socket here is handled here: nothing may be read and left.
            let Some(message) = socket.next().now_or_never() else { break };
            ended = self.handle_message(message).await;
        }
        self.submit_events().await;
        if is_late() {
            tokio::task::yield_now().await;
        }
        ended
    }

    async fn handle_message(&mut self, message: Option<Result<Message, WsError>>) -> Option<End> {
        self.waited_since = Instant::now();
        self.misses = 0;
        let text = match message {
            None | Some(Ok(Message::Close(_))) => return Some(End::Gone),
            Some(Err(error)) => return Some(self.handle_broken(&error)),
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => Utf8Bytes::from_static("binary"),
            Some(Ok(_)) => return None,
        };
        let decoded = if text.len() <= limits::LIGHT_MESSAGE_BYTES_MAX {
            wire::decode(&text)
        } else {
            match self.shared.lane.run(move || wire::decode(&text)).await {
                Some(decoded) => decoded,
                None => return Some(End::Cut(Cut::Shutdown)),
            }
        };
        let is_noisy = decoded.is_err() && !self.shared.take_malformed(self.ip);
        let mut effects = std::mem::take(&mut self.effects);
        self.session.handle(&self.shared.world(), self.shared.now(), decoded, &mut effects);
        let mut ended = None;
        for effect in effects.drain(..) {
            if let Some(end) = self.execute(effect).await {
                ended = Some(end);
                break;
            }
        }
        effects.clear();
        self.effects = effects;
        ended.or_else(|| is_noisy.then_some(End::Cut(Cut::NoisyAddress)))
    }

    fn handle_broken(&mut self, error: &WsError) -> End {
        match error {
            WsError::Capacity(_) => End::Cut(Cut::FrameTooLarge),
            WsError::Utf8(_) => End::Cut(Cut::Utf8),
            // A line that breaks is no breach of the protocol.
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Gone,
            WsError::Protocol(_) => End::Cut(Cut::Protocol),
            _ => End::Gone,
        }
    }

    async fn execute(&mut self, effect: Effect) -> Option<End> {
        match effect {
            Effect::Send(text) => self.out.push(text.into()),
            Effect::Submit(event) => {
                let bytes = event_bytes(&event).max(limits::IN_FLIGHT_EVENT_BYTES_MIN);
                self.in_flight.fetch_add(bytes, Ordering::AcqRel);
                self.events_bytes += bytes;
                self.events.push(*event);
                if self.events.len() >= limits::VERIFY_BATCH_MAX {
                    self.submit_events().await;
                }
            }
            Effect::Authenticated => {
                self.from = Arc::new(self.session.deliverer().clone());
                self.shared.live().subs.authenticate(self.id, self.from.readers.clone());
            }
            Effect::Learn { agent, row } => self.learn(agent, row).await,
            Effect::Subscribe { sub, filters } => self.subscribe(sub, filters.into()).await,
            Effect::Count { sub, filters } => {
                self.shared.metrics.counts.inc();
                self.scans.count(sub, filters, self.shared.tail.newest());
            }
            Effect::Unsubscribe(sub) => self.unsubscribe(&sub).await,
            Effect::NegOpen { sub, filter, message } => {
                self.shared.metrics.negotiations.inc();
                self.negs.remove(&sub);
                self.scans.reconcile(sub, *filter, message, self.shared.tail.newest());
            }
            Effect::NegMsg { sub, message } => self.negotiate(sub, &message),
            Effect::NegClose(sub) => {
                self.negs.remove(&sub);
                self.scans.cancel_reconcile(&sub);
            }
            Effect::Cut(cut) => return Some(End::Cut(cut)),
        }
        None
    }

    async fn learn(&mut self, agent: PubKey, row: Ownership) {
        if let Err(refusal) = self.shared.own(agent, row).await {
            self.out.push(wire::notice(&refusal.to_string()).into());
        }
    }

    async fn subscribe(&mut self, sub: SubId, filters: Arc<[Filter]>) {
        self.shared.metrics.requests.inc();
        self.unsubscribe(&sub).await;
        let quoted: Arc<str> = wire::quote(sub.as_str()).into();
        let work = self.shared.live().subs.subscribe(self.id, &sub, Arc::clone(&filters));
        if let Some(work) = work {
            index(&self.shared, work).await;
        }
        let after = {
            let mut live = self.shared.live();
            // Under the lock: what is committed by now is the scan's, what comes later is fan-out's.
            let newest = self.shared.tail.newest();
            live.subs.begin(self.id, &sub, newest);
            newest
        };
        self.subs.insert(sub.clone(), Sub { quoted: Arc::clone(&quoted), filters: Arc::clone(&filters), after });
        self.shared.metrics.subscriptions.inc();
        for record in self.shared.recent(&filters, after, &self.from.readers) {
            self.out.push(wire::event(&quoted, record.as_ref()).into());
        }
        let most = self.shared.world().limits.results;
        self.scans.request(sub, quoted, filters, after, most);
    }

    async fn unsubscribe(&mut self, sub: &SubId) {
        self.scans.cancel_request(sub);
        if self.subs.remove(sub).is_none() {
            return;
        }
        self.shared.metrics.subscriptions.dec();
        let work = self.shared.live().subs.unsubscribe(self.id, sub);
        if let Some(work) = work {
            index(&self.shared, work).await;
        }
    }

    fn negotiate(&mut self, sub: SubId, message: &[u8]) {
        let Some(negotiation) = self.negs.get_mut(&sub) else {
            let refusal = Prefix::Invalid.because("closed: the set is still being collected; wait for NEG-MSG");
            self.out.push(wire::neg_err(&sub, &refusal).into());
            return;
        };
        match negotiation.answer(message) {
            Ok(answer) => self.out.push(wire::neg_msg(&sub, &faster_hex::hex_string(&answer)).into()),
            Err(refusal) => {
                self.out.push(wire::neg_err(&sub, &refusal).into());
                self.negs.remove(&sub);
                self.session.handle_neg_closed(&sub);
            }
        }
    }

    /// Gives what was read to the pool; waits when the pool is full, and so does the client.
    async fn submit_events(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.events);
        let bytes = std::mem::take(&mut self.events_bytes);
        let (outbox, in_flight) = (Arc::clone(&self.outbox), Arc::clone(&self.in_flight));
        let job = Job {
            from: Arc::clone(&self.from),
            origin: Origin::Client,
            ip: Some(self.ip),
            turn: Some(self.sequence.next()),
            events,
            done: Box::new(move |verdicts| {
                in_flight.fetch_sub(bytes, Ordering::AcqRel);
                verdicts.iter().for_each(|verdict| outbox.answer(ok_text(verdict)));
            }),
        };
        // A closed pool means that the relay stops; so will this connection.
        drop(self.shared.pool.submit(job).await);
    }

    /// Lets a query and, when live delivery fell behind, the store's tail run on for a slice.
    async fn step(&mut self) {
        if let Some(seq) = self.outbox.behind()
            && !self.catch_up(seq)
        {
            tokio::time::sleep(CATCH_UP_AGAIN).await;
        }
        let shared = Arc::clone(&self.shared);
        match self.scans.step(&shared, &self.from, &mut self.out).await {
            None => {}
            Some(Ended::Failed(sub)) => {
                self.session.handle_closed(&sub);
                self.unsubscribe(&sub).await;
            }
            Some(Ended::Negotiation(sub, negotiation)) => drop(self.negs.insert(sub, *negotiation)),
            Some(Ended::NegotiationFailed(sub)) => self.session.handle_neg_closed(&sub),
        }
    }

    /// Sends what live delivery left out, from the first missed event on, then lets it take over again. `false`: the
    /// store cannot be read now.
    fn catch_up(&mut self, first: Seq) -> bool {
        let mut seen = Seq(first.0 - 1);
        // What fan-out has passed by now is in the store; when nothing is left of it, it was replaced or deleted.
        let passed = self.shared.live().cursor;
        let Some(changes) = fanout::read(&self.shared, seen) else { return false };
        if changes.is_empty() {
            seen = seen.max(passed);
        }
        let now = unix_now();
        let world = self.shared.world();
        let mut bytes = 0;
        for change in &changes {
            if bytes >= limits::SLICE_BYTES_MAX {
                break;
            }
            let event = change.record.as_ref();
            seen = change.seq;
            if !may_read(&world, &self.from.readers, event, now) {
                continue;
            }
            let wanted = self
                .subs
                .values()
                .filter(|sub| change.seq > sub.after && sub.filters.iter().any(|filter| filter.matches(event)));
            let is_first = change.seq == first;
            for sub in wanted.filter(|sub| !(is_first && self.outbox.had_room_for(first, &sub.quoted))) {
                let text = wire::event(&sub.quoted, event);
                bytes += text.len();
                self.out.push(text.into());
            }
        }
        drop(world);
        let live = self.shared.live();
        let is_level = seen >= live.cursor;
        self.outbox.caught_up(seen, is_level);
        true
    }

    fn next_tick(&self) -> Instant {
        let world = self.shared.world();
        let ping = self.waited_since + Duration::from_secs(world.limits.ping_secs.max(1));
        match self.session.auth_deadline_ms(&world) {
            Some(deadline) => {
                let left = deadline.saturating_sub(self.shared.now().mono_ms);
                ping.min(Instant::now() + Duration::from_millis(left))
            }
            None => ping,
        }
    }

    /// Pings a silent client; ends the connection when it stays silent or does not authenticate where it must.
    fn tick(&mut self, timer: std::pin::Pin<&mut Sleep>) -> Option<End> {
        let (is_late, ping) = {
            let world = self.shared.world();
            let deadline = self.session.auth_deadline_ms(&world);
            let is_late = deadline.is_some_and(|deadline| deadline <= self.shared.now().mono_ms);
            (is_late, Duration::from_secs(world.limits.ping_secs.max(1)))
        };
        if is_late {
            return Some(End::Cut(Cut::AuthTimeout));
        }
        if self.waited_since.elapsed() >= ping {
            // From now on, not from when it was due: who is pinged has the whole time to answer, also when the relay
            // stood still for so long that the next ping is due as well.
            self.waited_since = Instant::now();
            self.misses += 1;
            if self.misses > MISSES_MAX {
                return Some(End::Cut(Cut::Silent));
            }
            self.out.push(PING);
        }
        timer.reset(self.next_tick());
        None
    }
}

fn sent(outcome: Result<Result<(), WsError>, tokio::time::error::Elapsed>) -> Result<(), End> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(End::Cut(Cut::SlowReader)),
    }
}

/// Stands in `out` for a ping frame: no message of the protocol is empty.
const PING: Utf8Bytes = Utf8Bytes::from_static("");

impl Drop for Conn {
    fn drop(&mut self) {
        self.shared.metrics.subscriptions.dec_by(self.subs.len() as i64);
    }
}

fn ok_text((id, verdict): &Verdict) -> Utf8Bytes {
    match verdict {
        Ok(Accepted::Stored(_) | Accepted::Dropped) => wire::ok_plain(id).into(),
        Ok(Accepted::Duplicate) => wire::ok(&id.to_hex(), Ok("duplicate: already have this event")).into(),
        Ok(Accepted::Answered(text)) => wire::ok(&id.to_hex(), Ok(text)).into(),
        Err(refusal) => wire::ok(&id.to_hex(), Err(refusal)).into(),
    }
}
