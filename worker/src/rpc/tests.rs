//! A leader as drivers reach it: over the wire, one after the other.

use std::net::TcpListener;
use std::path::Path;

use foggara_kernels::Threads;
use foggara_proto::sequence::SequenceParams;
use foggara_proto::step::{Chunk, Grant, Join, StepReport};
use foggara_proto::wire::worker::rank_client::RankClient;
use foggara_proto::wire::worker::rank_server::RankServer;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};

use super::*;
use crate::models::Models;
use crate::weights::Residence;

/// A worker that leads group 1 by itself, of the smallest model.
async fn leader() -> (GroupHost, RankClient<Channel>) {
    let (news, mut received) = mpsc::unbounded_channel();
    let collective = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let host = GroupHost::new(
        collective,
        Threads::anywhere(1),
        None,
        Models::default(),
        Residence::default(),
        0,
        news,
    );
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llama");
    host.assign(wire::Assign {
        group: 1,
        epoch: 7,
        size: 1,
        model_path: model.to_string_lossy().into_owned(),
        collective: "shm".into(),
        kv_blocks: 8,
        block_size: 16,
        kv_dtype: "auto".into(),
        max_step_rows: 64,
        threads_on_host: 1,
        group_key: vec![1; 16],
        ..wire::Assign::default()
    });
    loop {
        match received.recv().await.expect("news").message {
            Some(wire::worker_message::Message::Ready(_)) => break,
            Some(wire::worker_message::Message::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let server = Server::builder().add_service(RankServer::new(RankService { host: host.clone() }));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (host, RankClient::connect(format!("http://{addr}")).await.expect("it listens"))
}

/// A driver's connection.
struct Driver {
    epoch: u64,
    plans: mpsc::Sender<wire::DriverMessage>,
    news: Streaming<wire::LeaderMessage>,
}

impl Driver {
    /// Attaches; what the leader answers.
    async fn attach(client: &mut RankClient<Channel>, driver_epoch: u64, fresh: bool) -> (Self, Attached) {
        let (plans, outgoing) = mpsc::channel(8);
        let attach = wire::Attach { group: 1, group_epoch: 7, driver_epoch, fresh };
        let message = Some(wire::driver_message::Message::Attach(attach));
        plans.send(wire::DriverMessage { message }).await.expect("the channel is new");
        let news = client.drive(ReceiverStream::new(outgoing)).await.expect("a leader").into_inner();
        let mut driver = Self { epoch: driver_epoch, plans, news };
        match driver.hear().await {
            Ok(wire::leader_message::Message::Attached(attached)) => {
                (driver, attached.try_into().expect("what is held makes sense"))
            }
            other => panic!("{other:?} instead of what is held"),
        }
    }

    async fn hear(&mut self) -> Result<wire::leader_message::Message, Status> {
        Ok(self.news.message().await?.expect("the leader goes on").message.expect("a message"))
    }

    async fn plan(&mut self, number: u64, plan: StepPlan) {
        let plan = StepPlan { driver_epoch: self.epoch, number, ..plan };
        let message = Some(wire::driver_message::Message::Plan(plan.into()));
        self.plans.send(wire::DriverMessage { message }).await.expect("the leader listens");
    }

    async fn report(&mut self) -> StepReport {
        match self.hear().await {
            Ok(wire::leader_message::Message::Report(report)) => report.try_into().expect("it makes sense"),
            other => panic!("{other:?} instead of a report"),
        }
    }
}

fn entering(sequence: u64) -> StepPlan {
    let params = SequenceParams { max_tokens: 9, ..SequenceParams::default() };
    let (tokens, envelope) = (vec![1, 2, 3], vec![4, 5]);
    StepPlan {
        joins: vec![Join { sequence, tokens, prompt_len: 3, params, cached: 0, envelope }],
        grants: vec![Grant { sequence, blocks: vec![2] }],
        chunks: vec![Chunk { sequence, tokens: 3 }],
        ..StepPlan::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_is_told_what_the_one_before_has_left() {
    let (host, mut client) = leader().await;
    let (mut first, attached) = Driver::attach(&mut client, 3, false).await;
    assert_eq!((attached.limits.kv_blocks, attached.limits.pools, attached.sequences.len()), (8, 1, 0));
    first.plan(1, entering(5)).await;
    let report = first.report().await;
    let token = report.outputs[0].tokens[0].token;

    let (mut second, attached) = Driver::attach(&mut client, 4, false).await;
    let held = &attached.sequences[..];
    assert_eq!((held.len(), held[0].sequence, &held[0].envelope[..]), (1, 5, &[4, 5][..]));
    assert_eq!((&held[0].tokens[..], &held[0].blocks[..]), (&[1, 2, 3, token][..], &[2][..]));
    let end = first.hear().await.expect_err("another has taken over");
    assert_eq!(end.code(), tonic::Code::Aborted);
    second.plan(1, StepPlan::default()).await;
    let report = second.report().await;
    assert_eq!((report.driver_epoch, report.number, report.outputs.len()), (4, 1, 1));

    let (mut third, attached) = Driver::attach(&mut client, 5, true).await;
    assert_eq!(attached.sequences, [], "it wanted none");
    third.plan(1, entering(5)).await;
    let said = third.report().await.outputs.remove(0).tokens[0].token;
    assert_eq!(said, token);
    tokio::task::spawn_blocking(move || host.shut_down()).await.expect("it ends");
}
