//! JSONL out: from the store while the relay is down, or by pages from a running relay.

use std::io::{self, Write};

use skep_proto::{EventId, Filter, order};

use super::{Observer, Offline, Pages, Progress, TransferError};
use crate::client::Client;
use crate::clock::unix_now;

/// Events between two calls of the observer.
const TELL_EVERY: u64 = 500;

/// What an export wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub events: u64,
    pub bytes: u64,
    /// Events of the relay that did not verify; they are left out.
    pub forged: u64,
}

struct Lines<'a> {
    out: &'a mut dyn Write,
    observer: &'a mut Observer<'a>,
    written: Written,
}

impl Lines<'_> {
    fn line(&mut self, json: &[u8]) -> Result<(), TransferError> {
        let put = |out: &mut dyn Write| -> io::Result<()> {
            out.write_all(json)?;
            out.write_all(b"\n")
        };
        put(self.out).map_err(TransferError::Output)?;
        self.written.events += 1;
        self.written.bytes += json.len() as u64 + 1;
        if self.written.events.is_multiple_of(TELL_EVERY) {
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        (self.observer)(Progress { bytes: self.written.bytes, events: self.written.events });
    }

    fn end(mut self) -> Result<Written, TransferError> {
        self.out.flush().map_err(TransferError::Output)?;
        self.tell();
        Ok(self.written)
    }
}

/// Writes every stored event that matches, newest first, whoever may read it. No filter is everything.
pub fn export_store<'a>(
    store: &Offline,
    filters: Vec<Filter>,
    out: &'a mut dyn Write,
    observer: &'a mut Observer<'a>,
) -> Result<Written, TransferError> {
    let filters = if filters.is_empty() { vec![Filter::new()] } else { filters };
    let mut lines = Lines { out, observer, written: Written::default() };
    store.each(filters, unix_now(), |event| lines.line(event.to_json().as_bytes()))?;
    lines.end()
}

/// Writes what a relay serves of these filters, newest first, each event once.
pub async fn export_relay<'a>(
    client: &mut Client,
    filters: Vec<Filter>,
    out: &'a mut dyn Write,
    observer: &'a mut Observer<'a>,
) -> Result<Written, TransferError> {
    let filters = if filters.is_empty() { vec![Filter::new()] } else { filters };
    let mut lines = Lines { out, observer, written: Written::default() };
    let mut all: Vec<Pages> = filters.into_iter().map(Pages::new).collect();
    let mut last: Option<EventId> = None;
    loop {
        let mut first: Option<(u64, EventId, usize)> = None;
        for (i, pages) in all.iter_mut().enumerate() {
            if let Some((at, id)) = pages.peek(client).await?
                && first.is_none_or(|(seen, other, _)| order::serve_order((at, &id), (seen, &other)).is_lt())
            {
                first = Some((at, id, i));
            }
        }
        let Some((_, id, i)) = first else { break };
        // What matches several filters is next in each of them, at the same place of the order.
        if let Some(event) = all[i].take()
            && last != Some(id)
        {
            lines.line(event.record().as_ref().to_json().as_bytes())?;
            last = Some(id);
        }
    }
    lines.written.forged = all.iter().map(Pages::forged).sum();
    lines.end()
}
