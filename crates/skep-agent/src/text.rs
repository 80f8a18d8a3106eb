//! Texts of others, cut to a length.

/// Bytes of one piece of text that is handed out; a longer one becomes several.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// At most this many bytes, cut between characters, with a sign that something is missing.
pub fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

/// The text in pieces of at most [`PIECE_BYTES_MAX`].
pub fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE_BYTES_MAX));
        text = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!(cut("añb", 2), "a…");
        assert_eq!(cut("añb", 4), "añb");
        let text = "ü".repeat(PIECE_BYTES_MAX);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(pieces(&text).count(), 2);
    }
}
