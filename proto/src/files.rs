//! Sending models' files: the stream that answers `foggara.files.v1.Files/Fetch`, whoever has the file.

use std::fmt::Display;

use futures::stream::{self, BoxStream, StreamExt};
use tonic::Status;

use crate::wire::files::FetchResponse;

/// What `Fetch` answers with.
pub type FetchStream = BoxStream<'static, Result<FetchResponse, Status>>;

/// A message for each piece. Pieces are read beside the messages, each when the one before it is on its way; the first error
/// is the last message.
pub fn fetch_stream<E: Display + Send + 'static>(
    pieces: impl Iterator<Item = Result<Vec<u8>, E>> + Send + 'static,
) -> FetchStream {
    stream::unfold(Some(pieces), next).boxed()
}

/// The next message, and what is left.
async fn next<E: Display + Send + 'static, I: Iterator<Item = Result<Vec<u8>, E>> + Send + 'static>(
    pieces: Option<I>,
) -> Option<(Result<FetchResponse, Status>, Option<I>)> {
    let mut pieces = pieces?;
    match tokio::task::spawn_blocking(move || (pieces.next(), pieces)).await {
        Ok((None, _)) => None,
        Ok((Some(Ok(data)), pieces)) => Some((Ok(FetchResponse { data }), Some(pieces))),
        Ok((Some(Err(error)), _)) => Some((Err(Status::not_found(error.to_string())), None)),
        Err(error) => Some((Err(Status::internal(error.to_string())), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_sent_until_one_cannot_be_read() {
        let pieces = vec![Ok(vec![1, 2]), Ok(vec![3]), Err("gone"), Ok(vec![4])];
        let sent: Vec<_> = fetch_stream(pieces.into_iter()).collect().await;
        let data: Vec<_> = sent.iter().filter_map(|sent| Some(sent.as_ref().ok()?.data.clone())).collect();
        assert_eq!(data, [vec![1, 2], vec![3]]);
        let error = sent.last().and_then(|sent| sent.as_ref().err()).expect("an error ends it");
        assert_eq!((sent.len(), error.message()), (3, "gone"));
    }
}
