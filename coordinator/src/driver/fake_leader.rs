//! A group's leader without a model, for tests: the next token is a function of all tokens before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use foggara_proto::sequence::{SequenceEnd, SequenceParams, SequenceRequest, TokenOutput};
use foggara_proto::step::{
    Attached, BlockId, GroupLimits, HeldSequence, SequenceId, SequenceOutput, StepPlan, StepReport,
};
use foggara_proto::wire::worker as wire;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const LIMITS: GroupLimits =
    GroupLimits { kv_blocks: 64, pools: 1, block_size: 4, max_step_rows: 16 };

/// The token that follows `tokens`; never below 10.
pub(crate) fn next(tokens: &[u32]) -> u32 {
    tokens.iter().fold(17u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token)) % 1000 + 10
}

/// What the fake answers to a prompt.
pub(crate) fn answer(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        tokens.push(next(&tokens));
    }
    tokens.split_off(prompt.len())
}

pub(crate) fn request(id: &str, prompt: &[u32], max_tokens: u32) -> SequenceRequest {
    let params = SequenceParams {
        max_tokens,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        seed: 0,
        stop_token_ids: vec![],
        logprobs: None,
        prompt_logprobs: false,
        ..SequenceParams::default()
    };
    SequenceRequest::new(id, prompt.to_vec(), prompt.len(), params)
}

#[derive(Clone)]
struct Held {
    tokens: Vec<u32>,
    prompt_len: usize,
    params: SequenceParams,
    envelope: Vec<u8>,
    blocks: Vec<BlockId>,
    joined_with: usize,
    cached: usize,
    end: Option<SequenceEnd>,
}

/// The table of a leader, and how it executes plans.
#[derive(Clone, Default)]
pub(crate) struct Table {
    held: BTreeMap<SequenceId, Held>,
    last: u64,
    /// What it tells of its sequences that is not so.
    lie: Option<fn(&mut HeldSequence)>,
}

impl Table {
    /// Sequences that have not been dropped.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Another driver attaches: what it is told.
    pub(crate) fn hold(&mut self) -> Vec<HeldSequence> {
        self.last = 0;
        let held = |(id, held): (&SequenceId, &Held)| HeldSequence {
            sequence: *id,
            tokens: held.tokens.clone(),
            prompt_len: held.prompt_len,
            params: held.params.clone(),
            envelope: held.envelope.clone(),
            blocks: held.blocks.clone(),
            cached: held.cached,
            outputs: Vec::new(),
            end: held.end,
            reading_prompt: false,
            decodes: held.cached >= held.joined_with,
        };
        let mut all: Vec<HeldSequence> = self.held.iter().map(held).collect();
        all.iter_mut().for_each(|held| self.lie.iter().for_each(|lie| lie(held)));
        all
    }

    pub(crate) fn lie(&mut self, lie: fn(&mut HeldSequence)) {
        self.lie = Some(lie);
    }

    pub(crate) fn execute(&mut self, plan: StepPlan) -> StepReport {
        assert_eq!(plan.number, self.last + 1, "plans are numbered without gaps");
        self.last = plan.number;
        for id in &plan.drops {
            assert!(self.held.remove(id).is_some(), "drop of an unknown sequence {id}");
        }
        for join in plan.joins {
            let (tokens, prompt_len, params) = (join.tokens, join.prompt_len, join.params);
            let (joined_with, cached, envelope) = (tokens.len(), join.cached, join.envelope);
            let (blocks, end) = (Vec::new(), None);
            let held = Held { tokens, prompt_len, params, envelope, blocks, joined_with, cached, end };
            assert!(self.held.insert(join.sequence, held).is_none(), "joined twice");
        }
        for grant in plan.grants {
            self.held
                .get_mut(&grant.sequence)
                .expect("granted to a known sequence")
                .blocks
                .extend(grant.blocks);
        }
        let chunks: BTreeMap<SequenceId, usize> =
            plan.chunks.iter().map(|chunk| (chunk.sequence, chunk.tokens as usize)).collect();
        let mut outputs = Vec::new();
        for (id, held) in &mut self.held {
            let decodes =
                held.end.is_none() && held.cached >= held.joined_with && held.cached + 1 == held.tokens.len();
            let rows = chunks.get(id).copied().unwrap_or(usize::from(decodes));
            if rows > 0 {
                outputs.push(run(*id, held, rows));
            }
        }
        StepReport { driver_epoch: plan.driver_epoch, number: plan.number, outputs, ..StepReport::default() }
    }
}

fn run(id: SequenceId, held: &mut Held, rows: usize) -> SequenceOutput {
    let known = |token: u32, logprob| TokenOutput { token, logprob, top: vec![] };
    let (start, end) = (held.cached, held.cached + rows);
    held.cached = end;
    let mut output = SequenceOutput { sequence: id, prompt: vec![], tokens: vec![], end: None };
    if held.params.prompt_logprobs {
        let first = (start == 0).then(|| known(held.tokens[0], None));
        let rest = start + 1..(end + 1).min(held.prompt_len);
        output.prompt = first.into_iter().chain(rest.map(|at| known(held.tokens[at], Some(-1.0)))).collect();
    }
    if end < held.tokens.len() {
        return output;
    }
    let most = held.params.max_tokens as usize;
    if held.tokens.len() - held.prompt_len < most {
        let token = next(&held.tokens);
        held.tokens.push(token);
        output.tokens = vec![known(token, held.params.logprobs.map(|_| -0.5))];
        if held.params.stop_token_ids.contains(&token) {
            output.end = Some(SequenceEnd::StopToken);
        }
    }
    if output.end.is_none() && held.tokens.len() - held.prompt_len >= most {
        output.end = Some(SequenceEnd::Length);
    }
    held.end = output.end;
    output
}

/// A leader that listens on a port.
#[derive(Clone)]
pub(crate) struct FakeLeader {
    pub(crate) addr: String,
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Table>,
    /// Leases that attached, oldest first.
    epochs: Mutex<Vec<u64>>,
    /// Steps it will still run, and how often it has been cut off.
    control: watch::Sender<(u64, u64)>,
}

impl FakeLeader {
    /// Starts one that runs `steps` steps and then waits for more.
    pub(crate) async fn start(steps: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let control = watch::Sender::new((steps, 0));
        let shared = Arc::new(Shared { table: Mutex::default(), epochs: Mutex::default(), control });
        let leader = Self { addr, shared };
        let service = wire::rank_server::RankServer::new(leader.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        leader
    }

    pub(crate) fn allow(&self, steps: u64) {
        self.shared.control.send_modify(|(left, _)| *left += steps);
    }

    /// Breaks the driver's connection.
    pub(crate) fn cut(&self) {
        self.shared.control.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// From now on it tells of its sequences what is not so, until it has to forget them.
    pub(crate) fn lie(&self, lie: fn(&mut HeldSequence)) {
        self.shared.table.lock().expect("no panic").lie(lie);
    }

    pub(crate) fn epochs(&self) -> Vec<u64> {
        self.shared.epochs.lock().expect("no panic").clone()
    }

    pub(crate) fn sequences(&self) -> usize {
        self.shared.table.lock().expect("no panic").len()
    }
}

#[tonic::async_trait]
impl wire::rank_server::Rank for FakeLeader {
    type DriveStream = BoxStream<'static, Result<wire::LeaderMessage, Status>>;

    async fn drive(
        &self,
        request: Request<Streaming<wire::DriverMessage>>,
    ) -> Result<Response<Self::DriveStream>, Status> {
        use wire::driver_message::Message as In;
        use wire::leader_message::Message as Out;
        let mut plans = request.into_inner();
        let first = plans.message().await?.and_then(|message| message.message);
        let Some(In::Attach(attach)) = first else { return Err(Status::invalid_argument("attach first")) };
        {
            let mut epochs = self.shared.epochs.lock().expect("no panic");
            if epochs.last().is_some_and(|newest| *newest >= attach.driver_epoch) {
                return Err(Status::failed_precondition("an old lease"));
            }
            epochs.push(attach.driver_epoch);
        }
        let sequences = {
            let mut table = self.shared.table.lock().expect("no panic");
            if attach.fresh {
                *table = Table::default();
            }
            table.hold()
        };
        let shared = Arc::clone(&self.shared);
        let mut control = shared.control.subscribe();
        let cuts = control.borrow_and_update().1;
        let out = |message| Ok(wire::LeaderMessage { message: Some(message) });
        Ok(Response::new(
            async_stream::stream! {
                yield out(Out::Attached(Attached { limits: LIMITS, sequences }.into()));
                loop {
                    let plan = tokio::select! {
                        plan = plans.message() => plan,
                        _ = control.wait_for(|(_, now)| *now > cuts) => break,
                    };
                    let Ok(Some(wire::DriverMessage { message: Some(In::Plan(plan)) })) = plan else { break };
                    if control.wait_for(|(left, now)| *left > 0 || *now > cuts).await.is_err() {
                        break;
                    }
                    if control.borrow().1 > cuts {
                        break;
                    }
                    shared.control.send_modify(|(left, _)| *left -= 1);
                    let plan = StepPlan::try_from(plan).expect("a valid plan");
                    assert_eq!(plan.driver_epoch, attach.driver_epoch);
                    let report = shared.table.lock().expect("no panic").execute(plan);
                    yield out(Out::Report(report.into()));
                }
                yield Err(Status::unavailable("cut"));
            }
            .boxed(),
        ))
    }
}
