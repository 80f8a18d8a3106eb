//! Encrypted contents. The cipher is the `nostr` crate's; here is what a relay may know without a key.

/// The shortest NIP-44 v2 payload in bytes: version 1, nonce 32, padded text 2 + 32, MAC 32.
const PAYLOAD_BYTES_MIN: usize = 99;

/// Whether a text has the shape of a NIP-44 v2 payload: base64 with padding, long enough, version byte 2.
/// The long form (plaintexts of 65,536 bytes and more) only makes it longer.
pub fn is_plausible(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(body) = bytes.strip_suffix(b"==").or_else(|| bytes.strip_suffix(b"=")).or(Some(bytes)) else {
        return false;
    };
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || *b == b'+' || *b == b'/';
    // The first byte, 2, is the top of the first two characters: "Ag" to "Av".
    bytes.len().is_multiple_of(4)
        && bytes.len() >= PAYLOAD_BYTES_MIN.div_ceil(3) * 4
        && bytes[0] == b'A'
        && (b'g'..=b'v').contains(&bytes[1])
        && body.iter().all(is_base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shape_of_a_v2_payload_is_plausible() {
        let good = format!("Ag{}", "A".repeat(130));
        assert!(is_plausible(&good));
        for bad in [
            String::new(),
            "hello".into(),
            good[..128].into(),
            format!("AQ{}", &good[2..]),
            format!("{good}="),
            good.replace('A', "!"),
        ] {
            assert!(!is_plausible(&bad), "{bad}");
        }
    }
}
