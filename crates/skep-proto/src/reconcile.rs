//! A guard for negentropy messages (NIP-77, protocol version 1).
//!
//! The `negentropy` crate reserves as many ids as a message says that it holds, before reading them: ten hostile
//! bytes abort the process. So every message is walked here first, and each count is checked against what is left.

/// Protocol version 1.
pub const VERSION: u8 = 0x61;

const ID: usize = 32;
const FINGERPRINT: usize = 16;

/// Why a message is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("the message is empty")]
    Empty,
    #[error("the message ends inside a range")]
    Short,
    #[error("a number does not fit in 64 bits")]
    Number,
    #[error("a range says that it holds more ids than the message does")]
    Count,
    #[error("unknown range mode")]
    Mode,
}

/// Walks a message. `Ok(false)`: another protocol version, whose only safe answer is our own version byte.
pub fn guard(message: &[u8]) -> Result<bool, GuardError> {
    let (&version, mut rest) = message.split_first().ok_or(GuardError::Empty)?;
    if version != VERSION {
        return Ok(false);
    }
    while !rest.is_empty() {
        varint(&mut rest)?; // timestamp of the upper bound
        let prefix = varint(&mut rest)?;
        if prefix > ID as u64 {
            return Err(GuardError::Count);
        }
        skip(&mut rest, prefix as usize)?;
        match varint(&mut rest)? {
            0 => {}
            1 => skip(&mut rest, FINGERPRINT)?,
            2 => {
                let count = varint(&mut rest)?;
                if count > (rest.len() / ID) as u64 {
                    return Err(GuardError::Count);
                }
                skip(&mut rest, count as usize * ID)?;
            }
            _ => return Err(GuardError::Mode),
        }
    }
    Ok(true)
}

fn skip(rest: &mut &[u8], bytes: usize) -> Result<(), GuardError> {
    *rest = rest.get(bytes..).ok_or(GuardError::Short)?;
    Ok(())
}

/// Base 128, most significant digit first, the high bit on all bytes but the last.
fn varint(rest: &mut &[u8]) -> Result<u64, GuardError> {
    let mut number: u64 = 0;
    loop {
        let (&byte, after) = rest.split_first().ok_or(GuardError::Short)?;
        *rest = after;
        number = number.checked_mul(128).ok_or(GuardError::Number)? | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_the_message_is_refused() {
        // version, bound (infinity, no prefix), id list, count 2^62
        let hostile = [0x61, 0, 0, 2, 0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(guard(&hostile), Err(GuardError::Count));
        assert_eq!(guard(&[0x61, 0, 0, 2, 1]), Err(GuardError::Count));
        let mut whole = vec![0x61, 0, 0, 2, 1];
        whole.extend([7; 32]);
        assert_eq!(guard(&whole), Ok(true));
    }

    #[test]
    fn noise_of_every_length_is_answered_without_a_panic() {
        let mut state = 1u64;
        for length in 0..600 {
            let noise: Vec<u8> = (0..length)
                .map(|i| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if i == 0 { VERSION } else { (state >> 56) as u8 }
                })
                .collect();
            let _ = guard(&noise);
        }
        assert_eq!(guard(&[]), Err(GuardError::Empty));
        assert_eq!(guard(&[0x62, 1, 2]), Ok(false));
        assert_eq!(
            guard(&[0x61, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Err(GuardError::Number)
        );
    }
}
