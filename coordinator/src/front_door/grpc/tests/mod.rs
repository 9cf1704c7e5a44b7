//! The services through real connections.

mod admin;
mod attach;
mod inference;
mod limits;

use foggara_proto::wire::inference as wire;
use foggara_proto::wire::inference::inference_client::InferenceClient;
use tonic::transport::Channel;

use crate::front_door::fixture::Fixture;

async fn connect(fixture: &Fixture) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let router = fixture.door.router();
    tokio::spawn(async move {
        crate::front_door::serve(listener, router, None, stopped).await;
        drop(stop);
    });
    Channel::from_shared(format!("http://{addr}")).expect("valid").connect().await.expect("it listens")
}

fn generate(text: &str) -> wire::GenerateRequest {
    wire::GenerateRequest {
        model: "m".into(),
        prompt: Some(wire::generate_request::Prompt::Text(text.into())),
        ..Default::default()
    }
}

/// All events, or the status that ended them.
async fn run(
    channel: Channel,
    request: wire::GenerateRequest,
) -> Result<Vec<wire::generate_response::Event>, tonic::Status> {
    let mut client = InferenceClient::new(channel).max_encoding_message_size(usize::MAX);
    let mut stream = client.generate(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(message) = stream.message().await? {
        events.extend(message.event);
    }
    Ok(events)
}
