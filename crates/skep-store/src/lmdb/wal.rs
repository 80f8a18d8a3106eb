//! The log: what makes a batch durable. One file for each layer; a file goes when its layer is in LMDB.
//!
//! ```text
//! frame: generation u64le | length u32le | CRC-32 u32le | payload
//! payload: (table u8, what u8: 0 gone, 1 empty, 2 bytes; key length u16le, value length u32le, key, value)*
//! ```
//!
//! A frame that is short, of another generation, or whose sum is wrong ends the log: it was never acknowledged.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::env::{Table, sync_dir};
use super::layers::{KeyBuf, Layer, Slot};
use crate::StoreError;

const HEAD: usize = 16;

/// Bytes reserved ahead, so that an append changes no metadata and one flush is enough.
pub(super) const RESERVE: u64 = 8 << 20;

/// The file that batches are appended to. It is made by the first of them at the latest: a store opens on a full disk.
pub(super) struct Wal {
    dir: PathBuf,
    file: Option<File>,
    pub generation: u64,
    /// Where the next frame goes. Moves only when a frame is durable, so a failed append is overwritten.
    end: u64,
    reserved: u64,
    is_durable: bool,
    buffer: Vec<u8>,
}

pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("log-{generation:016x}"))
}

/// Generations of the log files that are there, oldest first.
pub(super) fn generations(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let entries = std::fs::read_dir(dir).map_err(|cause| StoreError::io("cannot list", dir, cause))?;
    let mut found: Vec<u64> = entries
        .filter_map(|entry| u64::from_str_radix(entry.ok()?.file_name().to_str()?.strip_prefix("log-")?, 16).ok())
        .collect();
    found.sort_unstable();
    Ok(found)
}

impl Wal {
    pub(super) fn new(dir: &Path, generation: u64, is_durable: bool) -> Self {
        Self { dir: dir.to_owned(), file: None, generation, end: 0, reserved: 0, is_durable, buffer: Vec::new() }
    }

    /// Makes the file; its name is durable when this returns.
    pub(super) fn create(&mut self) -> Result<(), StoreError> {
        let path = path(&self.dir, self.generation);
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true).mode(0o600);
        let file = options.open(&path).map_err(|cause| StoreError::io("cannot create", &path, cause))?;
        let made = self.reserve(&file, 0).and_then(|()| sync_dir(&self.dir));
        if made.is_err() {
            self.reserved = 0;
            remove(&self.dir, self.generation);
        }
        made.map(|()| self.file = Some(file))
    }

    /// Makes a layer durable. On an error nothing of it will ever be read.
    pub(super) fn append(&mut self, layer: &Layer) -> Result<(), StoreError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(HEAD, 0);
        layer.iter().for_each(|(table, key, slot)| encode(&mut buffer, table, key, slot));
        let length = (buffer.len() - HEAD) as u32;
        let sum = checksum(self.generation, &buffer[HEAD..]);
        buffer[..8].copy_from_slice(&self.generation.to_le_bytes());
        buffer[8..12].copy_from_slice(&length.to_le_bytes());
        buffer[12..16].copy_from_slice(&sum.to_le_bytes());
        let written = self.write(&buffer);
        let end = self.end + buffer.len() as u64;
        self.buffer = buffer;
        written?;
        self.end = end;
        Ok(())
    }

    fn write(&mut self, frame: &[u8]) -> Result<(), StoreError> {
        if self.file.is_none() {
            self.create()?;
        }
        let Some(file) = self.file.take() else { return Err(StoreError::Corrupt("log")) };
        let written = self.write_to(&file, frame);
        self.file = Some(file);
        written
    }

    fn write_to(&mut self, file: &File, frame: &[u8]) -> Result<(), StoreError> {
        self.reserve(file, frame.len() as u64)?;
        let written = file.write_all_at(frame, self.end);
        let flushed = written.and_then(|()| if self.is_durable { file.sync_data() } else { Ok(()) });
        flushed.map_err(|cause| {
            // It is refused, so a later start must not find it whole. Best effort: the disk fails.
            let _ = file.write_all_at(&[0; HEAD], self.end);
            StoreError::io("cannot write", &path(&self.dir, self.generation), cause)
        })
    }

    /// Reserves room on disk before it is needed: a full disk shows here, before anything is written.
    fn reserve(&mut self, file: &File, more: u64) -> Result<(), StoreError> {
        if self.end + more <= self.reserved {
            return Ok(());
        }
        let reserved = self.end + more + RESERVE;
        let path = path(&self.dir, self.generation);
        let io = |cause: std::io::Error| StoreError::io("cannot extend", &path, cause);
        let reserving = match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, reserved) {
            // A file system that reserves nothing: a full disk shows at the write, and the frame is refused then.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(reserved).map_err(io),
            other => other.map_err(|errno| io(errno.into())),
        };
        if let Err(error) = reserving {
            // What it got before it failed is the last room on the disk, and the flusher needs it.
            let _ = file.set_len(self.reserved);
            return Err(error);
        }
        if self.is_durable {
            file.sync_all().map_err(io)?;
        }
        self.reserved = reserved;
        Ok(())
    }
}

/// Removes every log up to this one: their layers are in LMDB.
pub(super) fn remove_up_to(dir: &Path, generation: u64) -> Result<(), StoreError> {
    generations(dir)?.into_iter().filter(|found| *found <= generation).for_each(|found| remove(dir, found));
    Ok(())
}

/// Removes a log whose layer is in LMDB. One that stays behind would only be replayed again.
pub(super) fn remove(dir: &Path, generation: u64) {
    let path = path(dir, generation);
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a log that is no longer needed");
    }
}

/// Adds everything that a log made durable to a layer of what is older.
pub(super) fn replay(dir: &Path, generation: u64, layer: &mut Layer) -> Result<(), StoreError> {
    let path = path(dir, generation);
    let bytes = std::fs::read(&path).map_err(|cause| StoreError::io("cannot read", &path, cause))?;
    let mut rest = bytes.as_slice();
    while let Some((payload, after)) = frame(rest, generation) {
        decode(payload, layer)?;
        rest = after;
    }
    Ok(())
}

fn frame(bytes: &[u8], generation: u64) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let length = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
    let (payload, after) = rest.split_at_checked(length)?;
    let is_ours = head[..8] == generation.to_le_bytes() && head[12..] == checksum(generation, payload).to_le_bytes();
    (is_ours && length > 0).then_some((payload, after))
}

fn checksum(generation: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn encode(out: &mut Vec<u8>, table: Table, key: &KeyBuf, slot: &Slot) {
    let what = match slot {
        Slot::Gone => 0,
        Slot::Empty => 1,
        Slot::Bytes(_) => 2,
    };
    out.extend_from_slice(&[table as u8, what]);
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(&(slot.bytes().len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(slot.bytes());
}

fn decode(mut payload: &[u8], layer: &mut Layer) -> Result<(), StoreError> {
    let corrupt = StoreError::Corrupt("log entry");
    while let Some((&[table, what, k0, k1, v0, v1, v2, v3], rest)) = payload.split_first_chunk::<8>() {
        let (key_length, value_length) = (u16::from_le_bytes([k0, k1]), u32::from_le_bytes([v0, v1, v2, v3]));
        let parts = rest.split_at_checked(key_length.into()).and_then(|(key, rest)| {
            rest.split_at_checked(value_length as usize).map(|(value, rest)| (key, value, rest))
        });
        let (Some(table), Some((key, value, rest))) = (Table::ALL.get(usize::from(table)), parts) else {
            return Err(corrupt);
        };
        let slot = match what {
            0 => Slot::Gone,
            1 => Slot::Empty,
            2 => Slot::Bytes(Arc::from(value)),
            _ => return Err(corrupt),
        };
        layer.set(*table, key.into(), slot);
        payload = rest;
    }
    if payload.is_empty() { Ok(()) } else { Err(corrupt) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    /// Generation 3, 52 bytes: row 7 of the events, row 7 by time, a lease that is gone. A log of an older binary
    /// must be read by a newer one, so a change of these bytes needs a new name for the file.
    const FRAME: &str = "03000000000000003400000063fd53c3000208000600000000000000000000077265636f72640201\
        08000000000000000000000000070c000600000000007461736b3a78";

    fn layer() -> Layer {
        let mut layer = Layer::default();
        layer.set(Table::Events, 7u64.to_be_bytes()[..].into(), Slot::Bytes(Arc::from(&b"record"[..])));
        layer.set(Table::Created, 7u64.to_be_bytes()[..].into(), Slot::Empty);
        layer.set(Table::Leases, b"task:x"[..].into(), Slot::Gone);
        layer
    }

    fn rows(layer: &Layer) -> Vec<(u8, KeyBuf, Slot)> {
        layer.iter().map(|(table, key, slot)| (table as u8, key.clone(), slot.clone())).collect()
    }

    fn replayed(dir: &Path, generation: u64) -> Layer {
        let mut layer = Layer::default();
        replay(dir, generation, &mut layer).unwrap();
        layer
    }

    #[test]
    fn a_frame_is_frozen_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        Wal::new(dir.path(), 3, false).append(&layer()).unwrap();
        let file = std::fs::read(path(dir.path(), 3)).unwrap();
        let written: String = file[..FRAME.len() / 2].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, FRAME);
        assert!(file[FRAME.len() / 2..].iter().all(|byte| *byte == 0), "the rest is reserved room");
        assert_eq!(rows(&replayed(dir.path(), 3)), rows(&layer()));
    }

    #[test]
    fn a_frame_of_another_generation_or_with_one_bit_wrong_ends_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut wal = Wal::new(dir.path(), 3, false);
        wal.append(&layer()).unwrap();
        let mut whole = std::fs::read(path(dir.path(), 3)).unwrap();
        whole.truncate(FRAME.len());
        for bit in 0..FRAME.len() / 2 * 8 {
            let mut altered = whole.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(path(dir.path(), 3), &altered).unwrap();
            assert_eq!(rows(&replayed(dir.path(), 3)), [], "bit {bit}");
        }
        std::fs::write(path(dir.path(), 4), &whole).unwrap();
        assert_eq!(rows(&replayed(dir.path(), 4)), []);
    }
}
