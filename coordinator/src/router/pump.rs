//! A stream from another coordinator, read as it comes.
//!
//! All sequences that one coordinator has at another share one connection, and what nobody reads there counts against what
//! may be on its way over it: a few clients that do not read would hold up all others, and Raft's answers. So it is read at
//! once and waits here, like the events of a driver of our own: bounded by the length of the answer.

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use super::SequenceStream;

/// `events`, read by a task of their own. Dropping the result drops them.
pub(super) fn pumped(
    mut events: impl Stream<Item = <SequenceStream as Stream>::Item> + Send + Unpin + 'static,
) -> SequenceStream {
    let (sender, mut received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = sender.closed() => return,
                event = events.next() => event,
            };
            let Some(event) = event else { return };
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    Box::pin(async_stream::stream! {
        while let Some(event) = received.recv().await {
            yield event;
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use foggara_proto::sequence::SequenceEvent;

    use super::*;

    #[tokio::test]
    async fn nothing_waits_where_it_comes_from() {
        let read = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&read);
        let events = futures::stream::iter(0..100).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(SequenceEvent::default())
        });
        let pumped = pumped(events);
        while read.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pumped.count().await, 100);
    }

    #[tokio::test]
    async fn dropping_it_drops_what_it_comes_from() {
        let held = Arc::new(());
        let guard = Arc::clone(&held);
        let events = futures::stream::pending().map(move |()| {
            let _held = &guard;
            Ok(SequenceEvent::default())
        });
        drop(pumped(events));
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
