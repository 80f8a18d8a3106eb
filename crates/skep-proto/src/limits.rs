//! Every limit, with the arithmetic that gave it. What a user can meet is in NIP-11 and in `docs/limits.md`.

use serde::{Deserialize, Serialize};

pub const KIB: usize = 1024;

/// Characters of a subscription id (NIP-01).
pub const SUB_ID_CHARS_MAX: usize = 64;

/// The parser's own bound on filters in one message; the configured one is checked after it.
pub const FILTERS_HARD_MAX: usize = 1_000;

/// Values in fields that NIP-01 does not name, of one event, filter or message, nested ones too: clients send none, or
/// a few, and reading over 60,000 objects took milliseconds.
pub const SKIPPED_VALUES_MAX: usize = 1_000;

/// How long an ephemeral event stays readable in the memory ring: NIP-AO's freshness, 300 s.
pub const EPHEMERAL_SECS_MAX: u64 = 300;

/// How far an AUTH event may be from our clock, either way, in seconds.
pub const AUTH_FRESH_SECS: u64 = 120;

/// How far a NIP-98 token may be from our clock, either way, in seconds.
pub const HTTP_AUTH_FRESH_SECS: u64 = 60;

/// How far a lease request may be from our clock: it is an act, not a record.
pub const LEASE_REQUEST_FRESH_SECS: u64 = 300;

/// Lease lengths: a prompter's 15 s renewed every 5 s is usual; a day is the most anything may hold.
pub const LEASE_TTL_SECS_DEFAULT: u64 = 15;
pub const LEASE_TTL_SECS_MAX: u64 = 86_400;

/// Bytes of a lease resource name: `turn:` + 64 hex + `:` + 64 hex is 134, a task reference may be longer.
pub const LEASE_RESOURCE_BYTES_MAX: usize = 256;

/// Bytes of a lease instance name.
pub const LEASE_INSTANCE_BYTES_MAX: usize = 128;

/// Metrics per agent per minute (NIP-AM) and telemetry frames per agent per second (NIP-AO).
pub const METRICS_PER_MINUTE: u32 = 60;
pub const FRAMES_PER_SECOND: u32 = 100;

/// Bytes of what is sealed in a metric or a frame (NIP-AM, NIP-AO): what two bytes of length can say.
pub const SEALED_BYTES_MAX: usize = 65_535;

/// Characters of the longest such content: version 1, nonce 32, length 2, padding to 65,536, MAC 32, as base64.
pub const SEALED_CONTENT_CHARS_MAX: usize = (1 + 32 + 2 + 65_536 + 32usize).div_ceil(3) * 4;

/// How far a control frame may be from our clock, either way (NIP-AO).
pub const CONTROL_FRESH_SECS: u64 = 300;

/// Milliseconds between two relay frames of one harness; what comes meanwhile waits for the next, in a batch.
pub const FRAME_INTERVAL_MS: u64 = 1_000;

/// Bytes of telemetry that wait for a frame: at 64 KiB a second about a minute's worth, then the oldest is dropped.
pub const FRAMES_PENDING_BYTES_MAX: usize = 4 * 1024 * KIB;

/// Bytes of one telemetry item, so that it fits in a frame by itself with the words of a batch around it, of which the
/// instance's name is up to [`LEASE_INSTANCE_BYTES_MAX`].
pub const FRAME_ITEM_BYTES_MAX: usize = SEALED_BYTES_MAX - 256 - LEASE_INSTANCE_BYTES_MAX;

/// Harnesses whose frames one watcher keeps in order: 50 agents, each started anew 20 times. The one that was silent
/// for longest is forgotten first.
pub const WATCHED_HARNESSES_MAX: usize = 1_024;

/// Seconds between two signs of life of a turn.
pub const TURN_LIVENESS_SECS: u64 = 10;

/// Leader election on one machine (NIP-LE): the file is written this often, and an older claim than two rounds is
/// nobody's. Who was stolen from stands back as long, so that the new leader's first round is over.
pub const LEADER_REFRESH_MS: u64 = 5_000;
pub const LEADER_STALE_MS: u64 = 2 * LEADER_REFRESH_MS;
pub const LEADER_STAND_DOWN_MS: u64 = 2 * LEADER_REFRESH_MS;

/// Bytes of a leader lock file that are looked at; ours has about 150.
pub const LEADER_FILE_BYTES_MAX: usize = 4 * KIB;

/// Agent-to-agent hops in one thread, and turns of one pair of agents in an hour; then the owner is asked.
pub const HOPS_MAX: u32 = 6;
pub const PAIR_TURNS_PER_HOUR_MAX: usize = 10;

/// Pairs of agents whose turns are counted: 50 agents are 2,450 pairs.
pub const PAIRS_MAX: usize = 4_096;

/// Messages that wait in an inbox. Past that a new one is refused, visibly; 10,000 rows of about 1 KiB are 10 MB.
pub const INBOX_WAITING_MAX: usize = 10_000;

/// Seconds that an agent's messages and turns are kept after they are over, but for messages that are dead: 30 days of
/// 1,000 messages of about 2 KiB are 60 MB.
pub const RECORDS_KEPT_SECS: u64 = 30 * 24 * 60 * 60;

/// Turns of an agent whose prompts are kept: 1,000 of [`PROMPT_TEXT_BYTES_MAX`] are 1 GiB, of about 20 KiB 20 MB.
pub const PROMPTS_KEPT_MAX: u64 = 1_000;

/// Ids that an agent remembers of messages and orders that are gone, so that one that comes again does nothing:
/// 1,000,000 of about 90 bytes are 90 MB, and three years of 1,000 a day.
pub const KNOWN_IDS_MAX: u64 = 1_000_000;

/// Attempts at a message, and the time between them: 5 s, doubled each time, at most 300 s, with full jitter. Ten
/// attempts take 5+10+20+40+80+160+300+300+300 s at most: 20 minutes.
pub const ATTEMPTS_MAX: u32 = 10;
pub const RETRY_MS_MIN: u64 = 5_000;
pub const RETRY_MS_MAX: u64 = 300_000;

/// A turn without any progress is cancelled after this; no turn is longer than the second.
pub const TURN_IDLE_MS: u64 = 15 * 60 * 1_000;
pub const TURN_MS_MAX: u64 = 2 * 60 * 60 * 1_000;

/// Milliseconds for which a provider's word to come back later is believed: a day; then it is asked once more.
pub const RETRY_AFTER_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Milliseconds that everything of a process may take to stop, in order: turns that are cancelled and then killed, with
/// a second to write their ends down; what was published last, as long as there is time and two seconds at least, and
/// as long where there is no connection; the relay, two seconds. 5 + 1 + 2 + 2 s is 10 s.
pub const STOP_TURNS_MS: u64 = 5_000;
pub const STOP_DRIVER_MS: u64 = STOP_TURNS_MS + 1_000;
pub const STOP_OUTBOX_MS: u64 = 2_000;
pub const STOP_AGENTS_MS: u64 = STOP_DRIVER_MS + STOP_OUTBOX_MS;
pub const STOP_MS: u64 = STOP_AGENTS_MS + 2_000;

/// From "please stop" to terminate, from there to kill, and from there to giving up on hearing of its end.
pub const KILL_STEP_MS: u64 = 5_000;

/// Milliseconds that git may take to make a conversation's tree: a checkout of 100,000 files takes about 20 s from a cold
/// disk, on a busy one several times that. The turn that waits for it must not pass for stuck meanwhile.
pub const GIT_MS_MAX: u64 = 5 * 60 * 1_000;

/// Milliseconds that git may take at the start of an agent to say whether trees can be made: three questions of some
/// 10 ms, and a cold disk. Agents are looked at beside each other, and one that is not known by then is started.
pub const TREES_CHECK_MS_MAX: u64 = 5_000;

/// Repositories that are looked at beside each other, with a process of git each: those of 50 agents take two rounds.
pub const TREES_CHECKED_AT_ONCE_MAX: usize = 32;

/// Trees of one agent: 256 checkouts of 100 MiB are 25 GiB, and to list them git is asked 256 x 8 times, about 10 s.
pub const TREES_MAX: usize = 256;

/// Bytes that are read of a file in a tree, or of what belongs to it: a path on a line, and a path has no more.
pub const TREE_TEXT_BYTES_MAX: u64 = 4_096;

/// Files of a tree that are looked at to say how large it is: 1,000,000 x about 2 µs is 2 s.
pub const TREE_FILES_COUNTED_MAX: u64 = 1_000_000;

/// Bytes of one reply that are kept; the rest is cut with a note.
pub const REPLY_BYTES_MAX: usize = 1024 * KIB;

/// Bytes of one published part of a reply: a quarter of an event, as escapes may double it and tags need room.
pub const REPLY_PART_BYTES_MAX: usize = 64 * KIB;

/// The same in a direct message. What is wrapped is sealed twice (NIP-59): 65,535 bytes of outer text leave 40,960 for
/// the inner, and JSON writes one byte as six at worst: 6 x 6 KiB and 4 KiB of tags.
pub const DIRECT_PART_BYTES_MAX: usize = 6 * KIB;

/// How long a permission may wait for its answer; less when the turn ends sooner (NIP-AO).
pub const PERMIT_MS_MAX: u64 = 300_000;

/// Permissions of one agent that wait at once, and decided ones that are remembered to tell a late answer.
pub const PERMITS_PENDING_MAX: usize = 32;
pub const PERMITS_DECIDED_MAX: usize = 1_024;

/// Bytes of a permission's identifiers (longer: denied), and of its title and labels (cut) (NIP-AO).
pub const PERMIT_ID_BYTES_MAX: usize = 200;
pub const PERMIT_TEXT_BYTES_MAX: usize = 200;

/// Bytes and lines of what a permission is for, as a card shows it; the rest is cut with a note. What is allowed should
/// be seen whole, on one screen, and a card with its marks is one part of a direct message.
pub const PERMIT_DETAIL_BYTES_MAX: usize = 2_000;
pub const PERMIT_DETAIL_LINES_MAX: usize = 60;

/// Bytes of one text in a prompt; the rest is cut with a note.
pub const PROMPT_TEXT_BYTES_MAX: usize = 1024 * KIB;

/// Messages of a thread, and bytes of them, that come before the message in a prompt.
pub const HISTORY_MESSAGES_MAX: usize = 50;
pub const HISTORY_BYTES_MAX: usize = 128 * KIB;

/// Milliseconds that a look at the relay may take before a prompt goes without it: what a person does not notice beside
/// a model that takes ten seconds to answer.
pub const LOOKUP_MS_MAX: u64 = 3_000;

/// Events of one such look: the messages before one, from three filters.
pub const LOOKUP_EVENTS_MAX: usize = 4 * HISTORY_MESSAGES_MAX;

/// Bytes of one word on a turn's progress: a long sentence; and milliseconds between two: a watcher gets one frame a
/// second, and a person reads one line in two.
pub const PROGRESS_BYTES_MAX: usize = 500;
pub const PROGRESS_MS_MIN: u64 = 2_000;

/// Messages of a page of history that no number was asked for, and bytes of a page with its envelopes: three quarters of
/// what a model server is sent of a tool's answer.
pub const HISTORY_PAGE_MESSAGES: usize = 20;
pub const HISTORY_PAGE_BYTES_MAX: usize = 48 * KIB;

/// Bytes of one message in such a page, so that it has six at least; the rest is cut with a note.
pub const HISTORY_PAGE_TEXT_BYTES_MAX: usize = 6 * KIB;

/// Bytes of a text that a tool says to another agent: a reply's part is no longer.
pub const TOOL_TEXT_BYTES_MAX: usize = 16 * KIB;

/// Bytes of a question to the owner, which a card shows whole, and of each of its two answers, a card's labels.
pub const QUESTION_BYTES_MAX: usize = 1_000;
pub const OPTION_BYTES_MAX: usize = 60;

/// Agents that a tool lists: 100 of about 400 bytes are 40 KB.
pub const AGENTS_LISTED_MAX: usize = 100;

/// Pages of [`LOOKUP_EVENTS_MAX`] profiles that are looked through for them, the newest first: 2,000 profiles. One with
/// fewer than half is the last: a relay may give fewer at once than were asked for.
pub const PROFILES_PAGES_MAX: usize = 10;
pub const PROFILES_PAGE_MIN: usize = LOOKUP_EVENTS_MAX / 2;

/// Milliseconds from one tool's look at the relay to the next of its session, one at a time; and for which the agents that
/// were found are good: whoever is new is met by the next minute.
pub const LOOK_MS_MIN: u64 = 1_000;
pub const SIBLINGS_MS_MAX: u64 = 60_000;

/// Calls of one session's tools at once, and connections to its socket: a program starts one, some start another when it
/// fails. More are refused.
pub const TOOL_CALLS_MAX: usize = 8;
pub const TOOL_CONNECTIONS_MAX: usize = 4;

/// Bytes of one message on that socket: the longest text of a call, with each byte escaped as six, and its frame.
pub const TOOL_LINE_BYTES_MAX: usize = 6 * TOOL_TEXT_BYTES_MAX + 16 * KIB;

/// Requests of one such connection without an answer that is written; meanwhile no more are read: the calls, as many
/// that were refused, and as many small ones. Answers of 48 KiB, each byte escaped as two at most: 3 MiB.
pub const TOOL_REQUESTS_MAX: usize = 4 * TOOL_CALLS_MAX;

/// Seconds for a tool's caller to take some of its answer from the socket; then the connection is cut.
pub const TOOL_SEND_SECS: u64 = 30;

/// Seconds for which a word on membership is good, and keys that are remembered: 4,096 x about 120 bytes.
pub const MEMBER_SECS: u64 = 60;
pub const MEMBERS_MAX: usize = 4_096;

/// Settled turns whose median estimates the next one.
pub const ESTIMATE_TURNS_MAX: usize = 20;

/// The part of a day's limit that a turn takes at most while nobody knows what turns cost: one of ten. Ten agents may
/// begin beside each other then, and one that never says what it used has ten turns a day.
pub const BLIND_TURNS_A_DAY: u64 = 10;

/// Turns of before today that a home's ledger keeps for the estimate: 2,000 x about 400 bytes are 800 KB, and 100 tasks.
pub const LEDGER_KEPT_MAX: u32 = 2_000;

/// Bytes of a task's name in a message: as long as an address of a repository's issue, say.
pub const TASK_BYTES_MAX: usize = 256;

/// Tasks whose accounts an agent has in memory: 4,096 x (256 of name + 20 x 16 of recent turns) is 2.4 MB.
pub const TASK_ACCOUNTS_MAX: usize = 4_096;

/// Bytes of an agent's or pod's name: a DNS label, so that it can be one.
pub const NAME_BYTES_MAX: usize = 63;

/// Connections to a control socket at once: commands and screens of one user. More are told so and closed.
pub const CONTROL_CONNECTIONS_MAX: usize = 16;

/// Bytes of a request on a control socket: the reason of a pause is its longest part.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 16 * KIB;

/// Messages in one answer, and bytes of it: 500 x (3 x 64 hex + 512 of reason + 300 of names) is 500 KB.
pub const CONTROL_MESSAGES_MAX: u32 = 500;
pub const CONTROL_ANSWER_BYTES_MAX: usize = 1024 * KIB;

/// Bytes of a reason in what is asked or answered there, and in an owner's word: escaped twice it is 4 times as long, and
/// an event around it fits in a request.
pub const CONTROL_REASON_BYTES_MAX: usize = 512;

/// Seconds of silence after which such a connection is closed, and that one agent may take to do what was asked: a
/// leader that is stopped is taken over from after 10 s.
pub const CONTROL_IDLE_SECS: u64 = 60;
pub const CONTROL_ACT_SECS: u64 = 15;

/// Bytes of one negentropy message we send, before hex: half of a usual 128 KiB frame, minus the envelope.
pub const NEG_FRAME_BYTES: usize = 60 * KIB;

/// Reconciliations open at once on one connection. Each holds 40 bytes an event: 4 x 500,000 x 40 = 80 MB at most.
pub const NEG_SESSIONS_MAX: usize = 4;

/// Events in one reconciliation.
pub const NEG_EVENTS_MAX: usize = 500_000;

/// Events that the writer commits at once: large enough that an fsync is shared by a full verify pipeline,
/// small enough (1,024 x about 20 µs) that a commit's CPU stays near 20 ms.
pub const BATCH_EVENTS_MAX: usize = 1_024;

/// Bytes after which a batch takes no more: it is in memory once more while it is written. Full batches of events of up
/// to 8 KiB fit.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * KIB;

/// Submissions waiting for the writer, all connections together. Each is at most one batch of a connection.
pub const WRITER_QUEUE_MAX: usize = 4_096;

/// Bytes of events of one connection between its socket and the store; then it is read no further. An event counts
/// as [`IN_FLIGHT_EVENT_BYTES_MIN`] at least, so this is 512 small events or 8 of the largest.
pub const IN_FLIGHT_BYTES_MAX: usize = 2 * 1024 * KIB;
pub const IN_FLIGHT_EVENT_BYTES_MIN: usize = 4 * KIB;

/// Bytes that one slice of a query, or of catching up, may make before they are sent.
pub const SLICE_BYTES_MAX: usize = 64 * KIB;

/// Bytes of recent ephemeral events served to one request.
pub const RECENT_BYTES_MAX: usize = 256 * KIB;

/// Pieces of an answer over HTTP between its scan and its socket; then the scan waits. Each is one slice, or what is
/// recent: 2 x (256 KiB and an event) is 1 MiB at most, as much as an outbox.
pub const HTTP_PIECES_MAX: usize = 2;

/// Events that one connection hands to the verify pool at a time.
pub const VERIFY_BATCH_MAX: usize = 32;

/// Bytes of live messages waiting for one connection; past that it is behind and catches up from the store.
pub const OUTBOX_BYTES_MAX: usize = 1024 * KIB;

/// Bytes that the kernel takes for a WebSocket connection and its client has not acknowledged; Linux allows twice this,
/// for its own bookkeeping. Left to itself it takes megabytes of a client that reads nothing, and others wait while
/// they are copied. At 100 ms there and back it is still 2 MB/s or more for each connection.
pub const SEND_BUFFER_BYTES: usize = 192 * KIB;

/// Seconds that a full outbox may make no progress before the reader is cut.
pub const OUTBOX_STALL_SECS: u64 = 10;

/// Events in the memory ring that fan-out reads: 65,536 x about 1 KiB = 64 MiB, and a byte bound to make sure.
pub const RING_EVENTS_MAX: usize = 65_536;
pub const RING_BYTES_MAX: usize = 64 * 1024 * KIB;

/// Work of one scan slice, in records looked at. 256 x about 1 µs is 256 µs, then other connections run.
pub const SLICE_RECORDS_MAX: usize = 256;

/// Slices that a query has on the event loop; what it needs beyond them it gets on the slow lane. 8 x 256 records is
/// all of most queries, and about 2 ms. Each 256 values of its filters count as one slice.
pub const LIGHT_SLICES_MAX: u32 = 8;

/// Values of filters that a subscription is put under in the index of live delivery at a time; fan-out and all who
/// subscribe wait meanwhile. 256 x about 100 ns is 25 µs.
pub const INDEX_VALUES_MAX: usize = 256;

/// Parts of a piece of work on the slow lane. Of a slice of a query, 256 records / 4 is about 64 µs for which the writer
/// may have to wait.
pub const SLOW_PARTS: usize = 4;

/// A message larger than this is read on the slow lane. 32 KiB of filters take about 200 µs, ten times the way there.
pub const LIGHT_MESSAGE_BYTES_MAX: usize = 32 * KIB;

/// Microseconds that one connection reads and handles messages in a row while others may be waiting: two slices.
pub const TURN_MICROS_MAX: u64 = 500;

/// Bytes that one connection reads in a row, of however large a message: 64 KiB is about 50 µs.
pub const TURN_BYTES_MAX: usize = 64 * KIB;

/// Tasks of the event loop between two looks at its sockets, when both of two cores are busy: 16 x about 50 µs is less
/// than 1 ms for whoever has just sent something.
pub const TASKS_BETWEEN_LOOKS: u32 = 16;

/// Malformed messages in a minute before a connection is cut.
pub const STRIKES_PER_MINUTE_MAX: u32 = 20;

/// Seconds that a connection cut for malformed messages keeps its place: 64 places / 10 s is 6.4 such connections a
/// second from one address at most.
pub const COOLING_SECS: u64 = 10;

/// Seconds for a client to send its HTTP request head.
pub const HEAD_SECS_MAX: u64 = 10;

const _: () = assert!(
    VERIFY_BATCH_MAX * IN_FLIGHT_EVENT_BYTES_MIN <= IN_FLIGHT_BYTES_MAX && VERIFY_BATCH_MAX <= BATCH_EVENTS_MAX
);
const _: () = assert!(LEADER_REFRESH_MS < LEADER_STALE_MS && TURN_IDLE_MS < TURN_MS_MAX && RETRY_MS_MIN < RETRY_MS_MAX);
const _: () = assert!(2 * GIT_MS_MAX < TURN_IDLE_MS);
// Each line has a mark of 7 bytes; a label that is quoted may be twice as long.
const _: () = assert!(
    PERMIT_DETAIL_BYTES_MAX + 7 * PERMIT_DETAIL_LINES_MAX + 5 * PERMIT_TEXT_BYTES_MAX + PERMIT_ID_BYTES_MAX + KIB
        < DIRECT_PART_BYTES_MAX
);
const _: () = assert!(PERMIT_MS_MAX < TURN_MS_MAX && SEALED_BYTES_MAX < FRAMES_PENDING_BYTES_MAX);
const _: () = assert!(QUESTION_BYTES_MAX < PERMIT_DETAIL_BYTES_MAX && OPTION_BYTES_MAX < PERMIT_TEXT_BYTES_MAX);
const _: () =
    assert!(TOOL_TEXT_BYTES_MAX <= REPLY_PART_BYTES_MAX && HISTORY_PAGE_TEXT_BYTES_MAX < HISTORY_PAGE_BYTES_MAX);
const _: () = assert!(NEG_FRAME_BYTES * 2 + 256 < OUTBOX_BYTES_MAX);
const _: () = assert!(HTTP_PIECES_MAX * (RECENT_BYTES_MAX + 256 * KIB) <= OUTBOX_BYTES_MAX);

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident : $type:ty = $default:expr, $unit:literal;)*) => {
        /// The limits that an operator may change, `[relay.limits]` in the configuration.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $name: $type,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Limits {
            /// (name, default, unit, meaning) of each, for the generated page.
            pub fn table() -> Vec<(&'static str, String, &'static str, &'static str)> {
                let all = Self::default();
                vec![$((stringify!($name), all.$name.to_string(), $unit, concat!($($doc,)+).trim_ascii()),)*]
            }
        }
    };
}

limits! {
    /// One WebSocket message. An event fits twice, so that its envelope and escapes always do.
    frame_bytes: usize = 512 * KIB, "bytes";
    /// One event as JSON.
    event_bytes: usize = 256 * KIB, "bytes";
    /// Tags of one event.
    tags: usize = 2_000, "tags";
    /// One element of a tag.
    tag_value_bytes: usize = 8 * KIB, "bytes";
    /// Filters in one REQ or COUNT.
    filters: usize = 20, "filters";
    /// Values (ids, authors, kinds, tag values) in all filters of one message.
    filter_values: usize = 5_000, "values";
    /// Subscriptions open on one connection.
    subscriptions: usize = 200, "subscriptions";
    /// Values in all filters of all subscriptions of one connection: each is a row of the live index.
    subscription_values: usize = 100_000, "values";
    /// Stored events served for one filter, whatever its `limit`.
    results: u64 = 5_000, "events";
    /// Connections open at once.
    connections: usize = 10_000, "connections";
    /// Connections open at once from one address.
    connections_per_ip: usize = 64, "connections";
    /// Time to authenticate where that is required.
    auth_timeout_secs: u64 = 30, "seconds";
    /// How far ahead of our clock `created_at` may be.
    created_at_ahead_secs: u64 = 900, "seconds";
    /// How far behind our clock `created_at` may be; 0 for no bound.
    created_at_behind_secs: u64 = 0, "seconds";
    /// Silence after which a connection is pinged; after two pings without an answer it is cut.
    ping_secs: u64 = 30, "seconds";
    /// EVENT messages a second on one connection; bursts of ten seconds pass. 0 for no bound.
    events_per_second: u32 = 2_000, "events/s";
    /// EVENT messages a second from one address, all its connections together. 0 for no bound.
    events_per_second_per_ip: u32 = 10_000, "events/s";
    /// Events a second by one author, whoever delivers them. 0 for no bound.
    events_per_second_per_pubkey: u32 = 1_000, "events/s";
    /// REQ, COUNT and NEG-OPEN messages a second on one connection; bursts of ten seconds pass. 0 for no bound.
    requests_per_second: u32 = 1_000, "requests/s";
    /// HTTP requests a second from one address; bursts of ten seconds pass. 0 for no bound.
    http_requests_per_second_per_ip: u32 = 200, "requests/s";
    /// Malformed messages a minute from one address, all its connections together: as many as ten connections may send
    /// before they are cut. Past that, each cuts the connection that it came on. 0 for no bound.
    malformed_per_minute_per_ip: u32 = 10 * STRIKES_PER_MINUTE_MAX, "messages/min";
    /// One uploaded blob.
    blob_bytes: usize = 64 * 1024 * KIB, "bytes";
    /// All blobs of one key: 32 of the largest. 0 for no bound.
    blob_bytes_per_key: u64 = 2 * 1024 * 1024 * KIB as u64, "bytes";
    /// All blobs, those that are being received too. 0 for no bound.
    blob_bytes_total: u64 = 32 * 1024 * 1024 * KIB as u64, "bytes";
}

/// Bytes of an event as JSON beside its tags and content: ids, keys, signature, names and numbers.
pub const EVENT_ENVELOPE_BYTES: usize = 342;

impl Limits {
    /// The longest content, in characters: one that is ASCII, in an event without tags, just fits.
    pub fn content_chars(&self) -> usize {
        self.event_bytes.saturating_sub(EVENT_ENVELOPE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_in_its_envelope_fits_in_a_frame() {
        let limits = Limits::default();
        assert!(limits.event_bytes + 2 * SUB_ID_CHARS_MAX * 6 < limits.frame_bytes);
        assert!(limits.tag_value_bytes <= u16::MAX as usize, "a record holds a tag's length in 16 bits");
    }
}
