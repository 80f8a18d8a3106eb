//! Queries and counts over HTTP: what a REQ and a COUNT are on a WebSocket.
//!
//! Job: read and check what is asked, pass the answer on as it is made. Neighbours: [`Backend::query`] makes the pieces.
//! Must not: hold an answer in memory; let one that broke off look like one that is whole.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use skep_core::Readers;
use skep_core::session::{check_filters, check_reader};
use skep_proto::{Filter, Prefix, Refusal};

use super::auth::{self, Asked};
use super::{Backend, Caller, Piece, Pieces, answer, json_answer, read_body, refused};

/// `POST /query`: one event a line.
pub async fn query<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let (readers, filters) = match ask(&*backend, request).await {
        Ok(asked) => asked,
        Err(answer) => return answer,
    };
    let mut pieces = backend.query(readers, filters, caller);
    // The status stands before the first line, so what fails before it can still be told.
    match pieces.recv().await {
        Some(Piece::Lines(first)) => answer(StatusCode::OK, LINES, Body::from_stream(lines(first, pieces))),
        Some(Piece::End) => answer(StatusCode::OK, LINES, Body::empty()),
        Some(Piece::Failed(refusal)) => refused(&refusal),
        None => refused(&Prefix::Error.because("the relay is stopping")),
    }
}

const LINES: &str = "application/x-ndjson";

/// The rest of an answer. An error here breaks the connection off, so that nobody takes a part for the whole.
fn lines(first: Bytes, pieces: Pieces) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((Some(Piece::Lines(first)), pieces), |(first, mut pieces)| async move {
        let next = match first {
            Some(first) => Some(first),
            None => pieces.recv().await,
        };
        match next {
            Some(Piece::Lines(lines)) => Ok(Some((lines, (None, pieces)))),
            Some(Piece::End) => Ok(None),
            Some(Piece::Failed(refusal)) => Err(io::Error::other(refusal.to_string())),
            None => Err(io::Error::other("the answer broke off")),
        }
    })
}

/// `POST /count`.
pub async fn count<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Response {
    let (readers, filters) = match ask(&*backend, request).await {
        Ok(asked) => asked,
        Err(answer) => return answer,
    };
    match backend.count(readers, filters).await {
        Ok(count) => json_answer(StatusCode::OK, &json!({ "count": count })),
        Err(refusal) => refused(&refusal),
    }
}

/// What a body asks for and who asks, after the rules that a REQ passes too.
async fn ask<B: Backend>(backend: &B, request: Request) -> Result<(Readers, Vec<Filter>), Response> {
    let (head, body) = read_body(backend, request).await?;
    let asked = Asked { method: &head.method, uri: &head.uri, body: &body };
    let checked = auth::reader(backend, &head.headers, asked).and_then(|readers| {
        let filters = parse_filters(&body)?;
        backend.with_world(|world| {
            check_filters(world, &filters).and_then(|()| check_reader(world, &readers, &filters))
        })?;
        Ok((readers, filters))
    });
    checked.map_err(|refusal| refused(&refusal))
}

/// One filter, or an array of them.
fn parse_filters(body: &[u8]) -> Result<Vec<Filter>, Refusal> {
    let parsed = match body.trim_ascii_start().first() {
        Some(b'[') => serde_json::from_slice(body),
        _ => serde_json::from_slice(body).map(|filter| vec![filter]),
    };
    match parsed {
        Ok(filters) if filters.is_empty() => Err(Prefix::Invalid.because("the body lacks a filter")),
        Ok(filters) => Ok(filters),
        Err(error) => Err(Prefix::Invalid.because(format!("the body is not a filter: {error}"))),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use futures_util::TryStreamExt;
    use tokio::sync::mpsc;

    use super::*;

    async fn told(last: Option<Piece>) -> Result<Vec<Bytes>, String> {
        let (sender, pieces) = mpsc::channel(2);
        sender.send(Piece::Lines("b\n".into())).await.unwrap();
        if let Some(last) = last {
            sender.send(last).await.unwrap();
        }
        drop(sender);
        lines("a\n".into(), pieces).try_collect().await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_an_answer_that_came_to_its_end_looks_whole() {
        assert_eq!(told(Some(Piece::End)).await, Ok(vec!["a\n".into(), "b\n".into()]));
        assert_eq!(told(None).await, Err("the answer broke off".into()));
        let failed = Piece::Failed(Prefix::Error.because("the disk"));
        assert_eq!(told(Some(failed)).await, Err("error: the disk".into()));
    }
}
