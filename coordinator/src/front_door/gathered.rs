//! One write for what comes at once.
//!
//! A step's report wakes the streams of all its sequences, and each wakes the connection that it goes out by. Polled at the first
//! of these, a connection would write a packet for each token: a system call at both ends, tens of microseconds, where a step of
//! a small model takes a millisecond or two for each of its sequences.

use std::pin::Pin;
use std::task::{Context, Poll};

/// Lets the tasks that are ready run before `inner` does, each time it is woken.
pub(super) struct Gathered<F> {
    inner: Pin<Box<F>>,
    waited: bool,
}

impl<F> Gathered<F> {
    pub(super) fn new(inner: F) -> Self {
        Self { inner: Box::pin(inner), waited: false }
    }
}

impl<F: Future> Future for Gathered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.waited = !self.waited;
        if self.waited {
            // A task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.inner.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Barrier, Notify, mpsc};

    use super::*;

    /// How many times a task is polled that takes what 32 others, woken at once, send it.
    async fn polls(wrap: impl FnOnce(Taking) -> Wrapped) -> usize {
        let polls = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let counted = Arc::clone(&polls);
        let taken = tokio::spawn(wrap(Box::pin(std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            while let Poll::Ready(message) = receiver.poll_recv(cx) {
                if message.is_none() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        }))));
        let go = Arc::new(Notify::new());
        let ready = Arc::new(Barrier::new(33));
        for number in 0..32 {
            let (sender, go, ready) = (sender.clone(), Arc::clone(&go), Arc::clone(&ready));
            tokio::spawn(async move {
                let told = go.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                ready.wait().await;
                told.await;
                sender.send(number).expect("it is taken");
            });
        }
        drop(sender);
        ready.wait().await;
        go.notify_waiters();
        taken.await.expect("no panic");
        polls.load(Ordering::Relaxed)
    }

    type Taking = Pin<Box<dyn Future<Output = ()> + Send>>;
    type Wrapped = Pin<Box<dyn Future<Output = ()> + Send>>;

    /// One thread, which runs what has been woken last first, as those of a server do.
    #[test]
    fn what_comes_at_once_is_taken_at_once() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a thread");
        let within = |wrap: fn(Taking) -> Wrapped| {
            runtime.block_on(async { tokio::spawn(polls(wrap)).await.expect("no panic") })
        };
        let (alone, gathered) = (within(|taking| taking), within(|taking| Box::pin(Gathered::new(taking))));
        assert!(gathered <= 4 && alone > 16, "{gathered} polls for 32 messages, {alone} without");
    }
}
