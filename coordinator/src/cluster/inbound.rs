//! Which messages of other members reach raft-rs: pure.
//!
//! raft-rs takes its messages on trust and panics on some that make no sense. Nothing here rejects what a correct member
//! sends.

use raft::prelude::{Message, MessageType};

/// Terms a message may be ahead of ours: more elections than a cluster can hold in its life.
const MAX_TERM_JUMP: u64 = 1 << 40;

/// Why a message goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is nonsense; the rest of the world goes on.
    Drop(&'static str),
    /// It shows that this member's log is not what it promised: going on would break promises.
    Fatal(String),
}

/// What this member knows.
pub(super) struct View<'a> {
    pub(super) id: u64,
    pub(super) members: &'a [u64],
    pub(super) term: u64,
    pub(super) committed: u64,
    pub(super) last: u64,
    /// Term of an entry of the log, if it is there.
    pub(super) term_at: &'a dyn Fn(u64) -> Option<u64>,
}

/// Whether `message` may be handed to raft.
pub(super) fn check(message: &Message, view: &View<'_>) -> Result<(), Verdict> {
    let kind = message.msg_type();
    if message.to != view.id || message.from == view.id || !view.members.contains(&message.from) {
        return Err(Verdict::Drop("it is not between two members"));
    }
    if message.term > view.term.saturating_add(MAX_TERM_JUMP) {
        return Err(Verdict::Drop("its term is absurd"));
    }
    // Raft takes term 0 for a message of its own process. Only reads are sent without a term.
    if message.term == 0 && kind != MessageType::MsgReadIndex {
        return Err(Verdict::Drop("it has no term"));
    }
    match kind {
        MessageType::MsgAppend => append(message, view),
        MessageType::MsgHeartbeat if message.term >= view.term && message.commit > view.last => {
            Err(Verdict::Fatal(format!(
                "the leader says that this coordinator acknowledged entry {}, but its log ends at {}: its disk has lost \
                 writes. Remove the coordinator from the cluster and add it under a new id",
                message.commit, view.last
            )))
        }
        MessageType::MsgSnapshot => snapshot(message, view),
        MessageType::MsgAppendResponse if !message.reject && message.index > view.last => {
            Err(Verdict::Drop("it acknowledges entries that do not exist"))
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            Err(Verdict::Drop("it does not say which read it is about"))
        }
        MessageType::MsgAppendResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        // What a process tells its own raft. Writes are forwarded as calls, not as raft messages.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader => Err(Verdict::Drop("it is of a kind that is never sent")),
    }
}

/// Entries must follow each other, and must not contradict what is committed.
fn append(message: &Message, view: &View<'_>) -> Result<(), Verdict> {
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        index = index.saturating_add(1);
        if entry.index != index || entry.term < term || entry.term > message.term {
            return Err(Verdict::Drop("its entries do not follow each other"));
        }
        term = entry.term;
    }
    if message.term < view.term || message.index < view.committed {
        // Raft only answers these.
        return Ok(());
    }
    let contradiction = || {
        Verdict::Fatal(format!(
            "the leader of term {} contradicts entry {}, which is committed here: this coordinator's store does not belong \
             to this cluster, or a disk has lost writes",
            message.term, view.committed
        ))
    };
    let committed_term = (view.term_at)(view.committed);
    let agrees = match message.index == view.committed {
        true => committed_term == Some(message.log_term),
        false => committed_term.is_none_or(|term| message.log_term >= term),
    };
    if agrees { Ok(()) } else { Err(contradiction()) }
}

/// A snapshot must be of this cluster's members.
fn snapshot(message: &Message, view: &View<'_>) -> Result<(), Verdict> {
    let metadata = message.get_snapshot().get_metadata();
    let state = metadata.get_conf_state();
    let mut voters = state.voters.clone();
    voters.sort_unstable();
    let plain = state.learners.is_empty()
        && state.voters_outgoing.is_empty()
        && state.learners_next.is_empty()
        && !state.auto_leave;
    if voters != view.members || !plain {
        return Err(Verdict::Drop("its snapshot is of other members"));
    }
    if metadata.index == 0 || metadata.term == 0 || metadata.term > message.term {
        return Err(Verdict::Drop("its snapshot is of no point in time"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use raft::prelude::{ConfState, Entry, Snapshot};

    use super::*;

    const LOG_TERMS: [u64; 6] = [0, 1, 1, 2, 3, 3];

    /// Coordinator 1 in term 4, with entries 1 to 5 of which 3 are committed.
    fn verdict(message: &Message) -> Result<(), Verdict> {
        let term_at = |index: u64| LOG_TERMS.get(usize::try_from(index).expect("small")).copied();
        let view = View { id: 1, members: &[1, 2, 3], term: 4, committed: 3, last: 5, term_at: &term_at };
        check(message, &view)
    }

    fn message(kind: MessageType) -> Message {
        Message { to: 1, from: 2, term: 4, msg_type: kind.into(), ..Message::default() }
    }

    fn append(index: u64, log_term: u64, entries: &[(u64, u64)]) -> Message {
        let entries =
            entries.iter().map(|(index, term)| Entry { index: *index, term: *term, ..Entry::default() });
        Message { index, log_term, entries: entries.collect(), ..message(MessageType::MsgAppend) }
    }

    fn snapshot(voters: &[u64], index: u64, term: u64) -> Message {
        let mut snapshot = Snapshot::default();
        let state = ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term, metadata.conf_state) = (index, term, Some(state));
        Message { snapshot: Some(snapshot), ..message(MessageType::MsgSnapshot) }
    }

    #[test]
    fn what_members_send_passes() {
        for good in [
            append(5, 3, &[(6, 4), (7, 4)]),
            append(3, 2, &[(4, 4)]),
            append(3, 2, &[]),
            append(4, 4, &[]),
            append(900, 4, &[]),
            append(1, 1, &[(2, 1)]),
            Message { term: 2, ..append(4, 1, &[(5, 2)]) },
            Message { commit: 5, ..message(MessageType::MsgHeartbeat) },
            Message { commit: 50, term: 3, ..message(MessageType::MsgHeartbeat) },
            Message { index: 5, ..message(MessageType::MsgAppendResponse) },
            Message { index: 9, reject: true, ..message(MessageType::MsgAppendResponse) },
            Message { term: 0, entries: vec![Entry::default()], ..message(MessageType::MsgReadIndex) },
            message(MessageType::MsgRequestVote),
            message(MessageType::MsgTimeoutNow),
            snapshot(&[3, 1, 2], 9, 4),
        ] {
            assert_eq!(verdict(&good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn nonsense_is_dropped() {
        for bad in [
            Message { to: 2, ..message(MessageType::MsgHeartbeat) },
            Message { from: 1, ..message(MessageType::MsgHeartbeat) },
            Message { from: 4, ..message(MessageType::MsgHeartbeat) },
            Message { term: u64::MAX, ..message(MessageType::MsgHeartbeat) },
            Message { term: 0, ..message(MessageType::MsgAppend) },
            message(MessageType::MsgHup),
            message(MessageType::MsgPropose),
            message(MessageType::MsgTransferLeader),
            message(MessageType::MsgReadIndex),
            message(MessageType::MsgReadIndexResp),
            Message { index: 6, ..message(MessageType::MsgAppendResponse) },
            append(5, 3, &[(7, 4)]),
            append(5, 3, &[(6, 4), (6, 4)]),
            append(5, 3, &[(6, 2)]),
            append(5, 3, &[(6, 5)]),
            append(u64::MAX, 3, &[(0, 3)]),
            snapshot(&[1, 2], 9, 4),
            snapshot(&[1, 2, 4], 9, 4),
            snapshot(&[1, 2, 3], 9, 5),
            snapshot(&[1, 2, 3], 0, 0),
            message(MessageType::MsgSnapshot),
        ] {
            assert!(matches!(verdict(&bad), Err(Verdict::Drop(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_leader_that_knows_more_of_this_log_than_this_log_is_fatal() {
        for fatal in [
            Message { commit: 6, ..message(MessageType::MsgHeartbeat) },
            append(3, 1, &[]),
            append(3, 3, &[(4, 3)]),
            append(4, 1, &[]),
        ] {
            assert!(matches!(verdict(&fatal), Err(Verdict::Fatal(_))), "{fatal:?}");
        }
    }
}
