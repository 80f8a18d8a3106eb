//! What this machine can do at most, measured beside a relay: the figures that a relay's are to be read against.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use secp256k1::{SECP256K1, XOnlyPublicKey, schnorr::Signature};
use skep_proto::{Draft, Kind, VerifiedEvent};

use crate::cli::at_least_one;
use crate::corpus::keypair;
use crate::latency::Latencies;
use crate::sheet::{Metric, Outcome, Sheet};

/// Bytes of one append, a page.
const APPEND: usize = 4096;

/// Bytes of one echo.
const ECHO: usize = 64;

/// Bytes of one bulk write.
const BULK: usize = 64 << 10;

/// Different events to verify, so that no cache of keys or points helps.
const EVENTS: usize = 256;

pub const SIGNATURES: &str = "signature checks, one core";
pub const SIGNATURES_ALL: &str = "signature checks, all cores";
pub const VERIFY: &str = "whole event checks (hash, signature, record), one core";
pub const FSYNC: &str = "4 KiB append + fdatasync";
pub const LOOPBACK_ECHO: &str = "loopback TCP echo of 64 bytes, one connection";
pub const LOOPBACK_BULK: &str = "loopback TCP, one stream";

#[derive(Debug, Clone, Args)]
pub struct Raw {
    /// Where to append; put it on the disk that the relay's data is on
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Seconds for each limit
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Measure this many times and print medians
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub runs: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Raw {
    pub fn run(&self) -> Result<Outcome> {
        let each = (0..self.runs).map(|_| self.measure()).collect::<Result<_>>()?;
        Ok(Outcome::new("raw", None, each))
    }

    fn measure(&self) -> Result<Vec<Sheet>> {
        let time = Duration::from_secs_f64(self.seconds);
        let events = sample()?;
        Ok(vec![
            rate(SIGNATURES, signatures(&events, time)?),
            all_cores(&events, time)?,
            rate(VERIFY, verifications(&events, time)?),
            fsync(&self.dir, time)?,
            echo(time)?,
            bulk(time)?,
        ])
    }
}

fn rate(label: &str, (count, seconds): (u64, f64)) -> Sheet {
    let mut sheet = Sheet::new(label);
    sheet.set_rate(count, seconds);
    sheet
}

fn sample() -> Result<Vec<VerifiedEvent>> {
    let seed = rand::random();
    (0..EVENTS)
        .map(|index| {
            let draft = Draft::new(Kind(1), 1_700_000_000, format!("{index:0300}")).tag(["t", "bench"]);
            Ok(draft.sign(&keypair(seed, index)?, &[0; 32]))
        })
        .collect()
}

/// Repeats `work`, given a number that grows, until the time is over.
fn repeat(time: Duration, mut work: impl FnMut(usize) -> Result<()>) -> Result<(u64, f64)> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        work(count)?;
        count += 1;
    }
    Ok((count as u64, start.elapsed().as_secs_f64()))
}

/// BIP-340 alone, key parsing included, as for an event.
fn signatures(events: &[VerifiedEvent], time: Duration) -> Result<(u64, f64)> {
    repeat(time, |n| {
        let event = &events[n % events.len()];
        let key = XOnlyPublicKey::from_slice(&event.pubkey.0)?;
        let signature = Signature::from_slice(&event.sig.0)?;
        Ok(SECP256K1.verify_schnorr(&signature, &event.id.0, &key)?)
    })
}

fn verifications(events: &[VerifiedEvent], time: Duration) -> Result<(u64, f64)> {
    repeat(time, |n| {
        std::hint::black_box(events[n % events.len()].raw().clone().verify()?);
        Ok(())
    })
}

fn all_cores(events: &[VerifiedEvent], time: Duration) -> Result<Sheet> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let counts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| signatures(events, time))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("invariant: checking a signature does not panic"))
            .collect()
    });
    let counts = counts.into_iter().collect::<Result<Vec<_>>>()?;
    let longest = counts.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    Ok(rate(SIGNATURES_ALL, (counts.iter().map(|(count, _)| count).sum(), longest)))
}

fn fsync(dir: &Path, time: Duration) -> Result<Sheet> {
    let file = tempfile::Builder::new().prefix("skep-bench-").tempfile_in(dir);
    let file = file.with_context(|| format!("cannot write in {}; give another --dir", dir.display()))?;
    let mut append = OpenOptions::new().append(true).open(file.path())?;
    let page = [0x5a; APPEND];
    let mut latencies = Latencies::default();
    let (count, seconds) = repeat(time, |_| {
        let start = Instant::now();
        append.write_all(&page)?;
        append.sync_data()?;
        latencies.record(start.elapsed());
        Ok(())
    })?;
    let mut sheet = rate(FSYNC, (count, seconds));
    sheet.set_latencies(&mut latencies);
    Ok(sheet)
}

/// A connected pair on loopback.
fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

fn echo(time: Duration) -> Result<Sheet> {
    let (mut near, mut far) = pair()?;
    let server = std::thread::spawn(move || {
        let mut bytes = [0; ECHO];
        while far.read_exact(&mut bytes).and_then(|()| far.write_all(&bytes)).is_ok() {}
    });
    let mut latencies = Latencies::default();
    let mut bytes = [7; ECHO];
    let counted = repeat(time, |_| {
        let start = Instant::now();
        near.write_all(&bytes)?;
        near.read_exact(&mut bytes)?;
        latencies.record(start.elapsed());
        Ok(())
    })?;
    drop(near);
    let _ = server.join();
    let mut sheet = rate(LOOPBACK_ECHO, counted);
    sheet.set_latencies(&mut latencies);
    Ok(sheet)
}

fn bulk(time: Duration) -> Result<Sheet> {
    let (mut near, mut far) = pair()?;
    let server = std::thread::spawn(move || {
        let mut bytes = vec![0; BULK];
        let mut sum = 0u64;
        while let Ok(read @ 1..) = far.read(&mut bytes) {
            sum += read as u64;
        }
        sum
    });
    let bytes = vec![7; BULK];
    let (_, seconds) = repeat(time, |_| Ok(near.write_all(&bytes)?))?;
    drop(near);
    let received = server.join().ok().context("the receiving thread panicked")?;
    let mut sheet = Sheet::new(LOOPBACK_BULK);
    sheet.set(Metric::MibPerSecond, received as f64 / seconds / f64::from(1 << 20));
    Ok(sheet)
}
