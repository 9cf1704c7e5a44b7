//! Another coordinator, for tests: it says what it is told to and remembers what it was told.

use std::sync::{Arc, Mutex};

use foggara_proto::sequence::{FoundRequest, SequenceEvent};
use foggara_proto::wire::cluster as wire;
use foggara_proto::wire::cluster::locate_response::Place;
use foggara_proto::wire::cluster::peer_server::{Peer, PeerServer};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// What it answers, and what it was asked.
pub(crate) struct FakePeer {
    pub(crate) addr: String,
    shared: Arc<Shared>,
    submitted: mpsc::UnboundedReceiver<wire::SubmitRequest>,
    cancelled: mpsc::UnboundedReceiver<wire::CancelRequest>,
    located: mpsc::UnboundedReceiver<wire::LocateRequest>,
}

struct Shared {
    /// Of every sequence: told at once, and then nothing more.
    events: Mutex<Vec<SequenceEvent>>,
    found: Mutex<Option<FoundRequest>>,
    /// Answers to the next ones who ask where a request is; the last one stays. `None`: it does not know.
    places: Mutex<Vec<Option<Option<Place>>>>,
    /// Cancellations that are still to fail.
    failing: Mutex<usize>,
    submitted: mpsc::UnboundedSender<wire::SubmitRequest>,
    cancelled: mpsc::UnboundedSender<wire::CancelRequest>,
    located: mpsc::UnboundedSender<wire::LocateRequest>,
}

impl FakePeer {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let ((said, submitted), (called, cancelled)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (asked, located) = mpsc::unbounded_channel();
        let (events, found, failing, places) = Default::default();
        let shared =
            Shared { events, found, places, failing, submitted: said, cancelled: called, located: asked };
        let shared = Arc::new(shared);
        let server =
            tonic::transport::Server::builder().add_service(PeerServer::from_arc(Arc::clone(&shared)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { addr, shared, submitted, cancelled, located }
    }

    /// What every sequence begins with.
    pub(crate) fn says(&self, events: Vec<SequenceEvent>) {
        *self.shared.events.lock().expect("no panic") = events;
    }

    /// What it knows of every request.
    pub(crate) fn knows(&self, found: Option<FoundRequest>) {
        *self.shared.found.lock().expect("no panic") = found;
    }

    /// Where it says that requests are, one answer after the other.
    pub(crate) fn places(&self, answers: Vec<Option<Option<Place>>>) {
        *self.shared.places.lock().expect("no panic") = answers;
    }

    /// So many cancellations fail.
    pub(crate) fn fails(&self, count: usize) {
        *self.shared.failing.lock().expect("no panic") = count;
    }

    /// The next sequence it was handed.
    pub(crate) async fn submitted(&mut self) -> wire::SubmitRequest {
        self.submitted.recv().await.expect("it runs")
    }

    /// The next time it was asked where a request is.
    pub(crate) async fn located(&mut self) -> wire::LocateRequest {
        self.located.recv().await.expect("it runs")
    }

    /// The next cancellation, also one that failed.
    pub(crate) async fn cancelled(&mut self) -> wire::CancelRequest {
        self.cancelled.recv().await.expect("it runs")
    }

    /// A cancellation that has come already.
    pub(crate) fn cancelled_already(&mut self) -> Option<wire::CancelRequest> {
        self.cancelled.try_recv().ok()
    }
}

#[tonic::async_trait]
impl Peer for Shared {
    type SubmitStream = BoxStream<'static, Result<wire::SequenceEvent, Status>>;

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        self.submitted.send(request.into_inner()).ok();
        let events = self.events.lock().expect("no panic").clone();
        let ends = events.iter().any(|event| event.end.is_some());
        let events = futures::stream::iter(events.into_iter().map(|event| Ok(event.into())));
        Ok(Response::new(match ends {
            true => events.boxed(),
            false => events.chain(futures::stream::pending()).boxed(),
        }))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelResponse>, Status> {
        self.cancelled.send(request.into_inner()).ok();
        let mut failing = self.failing.lock().expect("no panic");
        match failing.checked_sub(1) {
            Some(left) => {
                *failing = left;
                Err(Status::unavailable("not now"))
            }
            None => Ok(Response::new(wire::CancelResponse {})),
        }
    }

    async fn find(
        &self,
        _request: Request<wire::FindRequest>,
    ) -> Result<Response<wire::FindResponse>, Status> {
        let found = self.found.lock().expect("no panic").clone();
        Ok(Response::new(wire::FindResponse { found: found.map(Into::into) }))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateResponse>, Status> {
        self.located.send(request.into_inner()).ok();
        let mut places = self.places.lock().expect("no panic");
        let place = if places.len() > 1 { places.remove(0) } else { places.first().copied().flatten() };
        place
            .map(|place| Response::new(wire::LocateResponse { place }))
            .ok_or_else(|| Status::unavailable("it is not driven here"))
    }

    async fn raft(
        &self,
        _request: Request<Streaming<wire::RaftMessages>>,
    ) -> Result<Response<wire::RaftAck>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn propose(
        &self,
        _request: Request<wire::ProposeRequest>,
    ) -> Result<Response<wire::ProposeResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn loading(
        &self,
        _request: Request<wire::LoadingRequest>,
    ) -> Result<Response<wire::LoadingResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn timelines(
        &self,
        _request: Request<wire::TimelinesRequest>,
    ) -> Result<Response<wire::TimelinesResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }

    async fn driven(
        &self,
        _request: Request<wire::DrivenRequest>,
    ) -> Result<Response<wire::DrivenResponse>, Status> {
        Err(Status::unimplemented("a fake"))
    }
}
