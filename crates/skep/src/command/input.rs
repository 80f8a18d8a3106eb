//! JSON from stdin, one value after another (JSONL, pretty-printed, or one array), and times as people write them.

use std::io::{self, BufReader, Read};

use serde_json::value::RawValue;
use skep_proto::Timestamp;

use crate::error::{CliError, Kind};

/// The values of a JSON stream; an array at top level is taken apart.
pub struct Values<R: Read> {
    stream: serde_json::StreamDeserializer<'static, serde_json::de::IoRead<R>, Box<RawValue>>,
    unpacked: std::vec::IntoIter<Box<RawValue>>,
    number: usize,
}

pub fn stdin() -> Values<BufReader<io::Stdin>> {
    values(BufReader::new(io::stdin()))
}

pub fn values<R: Read>(from: R) -> Values<R> {
    Values {
        stream: serde_json::Deserializer::from_reader(from).into_iter(),
        unpacked: Vec::new().into_iter(),
        number: 0,
    }
}

impl<R: Read> Iterator for Values<R> {
    /// The place of a value, from 1, and its text. After an error nothing more comes.
    type Item = Result<(usize, Box<RawValue>), CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(value) = self.unpacked.next() {
                self.number += 1;
                return Some(Ok((self.number, value)));
            }
            let value = match self.stream.next()? {
                Ok(value) => value,
                Err(error) => {
                    let cause = format!("stdin is not JSON after {} values: {error}", self.number);
                    return Some(Err(CliError::new(Kind::Input, cause).hint("one JSON value a line, in UTF-8")));
                }
            };
            match serde_json::from_str::<Vec<Box<RawValue>>>(value.get()) {
                Ok(all) => self.unpacked = all.into_iter(),
                Err(_) => {
                    self.number += 1;
                    return Some(Ok((self.number, value)));
                }
            }
        }
    }
}

/// Reads unix seconds, `now`, a time ago as `2h` or `1d 12h`, or RFC 3339.
pub fn time(text: &str, now: Timestamp) -> Result<Timestamp, CliError> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if text == "now" {
        return Ok(now);
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.saturating_sub(ago.as_secs()));
    }
    let absolute = humantime::parse_rfc3339_weak(text).ok();
    absolute.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map(|since| since.as_secs()).ok_or_else(
        || {
            CliError::new(Kind::Input, format!("{text:?} is not a time"))
                .hint("unix seconds, a time ago as 2h or 7d, or 2025-01-31T12:00:00Z")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<String, Kind>> {
        values(text.as_bytes())
            .map(|item| item.map(|(_, value)| value.get().to_owned()).map_err(|error| error.kind))
            .collect()
    }

    #[test]
    fn lines_arrays_and_pretty_json_are_the_same_values() {
        let two = vec![Ok(r#"{"a":1}"#.to_owned()), Ok(r#"{"b":2}"#.to_owned())];
        for text in
            ["{\"a\":1}\n{\"b\":2}\n", "[{\"a\":1},{\"b\":2}]", "\n\n{\"a\":1} {\"b\":2}", "[{\"a\":1}]\n[]\n{\"b\":2}"]
        {
            assert_eq!(read(text), two, "{text}");
        }
        assert!(read("").is_empty());
    }

    #[test]
    fn what_is_no_json_ends_the_stream_with_an_error() {
        assert_eq!(read("{\"a\":1}\nnonsense\n{}"), [Ok(r#"{"a":1}"#.to_owned()), Err(Kind::Input)]);
    }

    #[test]
    fn times_are_absolute_or_ago() {
        let now = 1_700_000_000;
        let all = [("5", 5), ("now", now), ("2h", now - 7_200), ("1d 1s", now - 86_401), ("2023-11-14T22:13:20Z", now)];
        for (text, expected) in all {
            assert_eq!(time(text, now).expect(text), expected);
        }
        for bad in ["", "-5", "soon", "1.5", "2h later"] {
            assert!(time(bad, now).is_err(), "{bad}");
        }
    }
}
