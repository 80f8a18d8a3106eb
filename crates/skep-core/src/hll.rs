//! HyperLogLog registers for COUNT (NIP-45), so that a client can merge the counts of several relays.

use sha2::{Digest, Sha256};
use skep_proto::{EventId, Filter, PubKey};

/// 256 registers over the authors of the counted events.
#[derive(Debug, Clone)]
pub struct Hll {
    offset: usize,
    registers: [u8; 256],
}

impl Hll {
    /// For a filter with exactly one tag condition of one value, which is what NIP-45 defines it for.
    pub fn for_filters(filters: &[Filter]) -> Option<Self> {
        let [Filter { tags, .. }] = filters else { return None };
        let [(_, values)] = tags.as_slice() else { return None };
        let [value] = values.as_slice() else { return None };
        let digit = char::from(seed(value).as_bytes()[32]).to_digit(16)? as usize;
        Some(Self { offset: digit + 8, registers: [0; 256] })
    }

    pub fn add(&mut self, author: &PubKey) {
        let register = usize::from(author.0[self.offset]);
        let mut tail = [0u8; 8];
        // 56 bits are compared: beyond that no relay will ever count.
        let from = &author.0[self.offset + 1..];
        let length = from.len().min(7);
        tail[..length].copy_from_slice(&from[..length]);
        let zeros = (u64::from_be_bytes(tail) | 0xff).leading_zeros() as u8;
        self.registers[register] = self.registers[register].max(zeros + 1);
    }

    pub fn to_hex(&self) -> String {
        use std::fmt::Write;
        self.registers.iter().fold(String::with_capacity(512), |mut out, register| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{register:02x}");
            out
        })
    }
}

/// 64 hex characters: the id or key itself, the key of an address, or the hash of any other value.
fn seed(value: &str) -> String {
    let is_hex = |text: &str| text.parse::<EventId>().is_ok();
    if is_hex(value) {
        return value.to_owned();
    }
    match value.split(':').nth(1) {
        Some(key) if is_hex(key) => key.to_owned(),
        _ => EventId(Sha256::digest(value).into()).to_hex(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(json: &str) -> Vec<Filter> {
        vec![serde_json::from_str(json).expect("a valid filter")]
    }

    #[test]
    fn the_register_is_the_byte_at_the_offset_and_holds_zeros_plus_one() {
        let target = format!("{}4{}", "0".repeat(32), "0".repeat(31));
        let mut hll = Hll::for_filters(&filters(&format!(r##"{{"#p":["{target}"],"kinds":[3]}}"##))).expect("one tag");
        let mut author = PubKey([0xff; 32]);
        author.0[12] = 0x0a; // offset 4 + 8
        author.0[13] = 0b0001_0000; // three zeros
        hll.add(&author);
        assert_eq!(hll.registers[0x0a], 4);
        assert_eq!(hll.registers.iter().filter(|register| **register > 0).count(), 1);
        assert_eq!(&hll.to_hex()[20..22], "04");
    }

    #[test]
    fn filters_that_nip_45_does_not_name_have_none() {
        for json in [r#"{"kinds":[3]}"#, r##"{"#p":["a","b"]}"##, r##"{"#p":["a"],"#e":["b"]}"##] {
            assert!(Hll::for_filters(&filters(json)).is_none(), "{json}");
        }
    }
}
