//! HTTP as clients speak it.

use foggara_tls::{HTTP_1, Trust};
use futures::StreamExt;
use serde_json::Value;

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub text: String,
}

impl Reply {
    /// Reads one.
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("a whole body") }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// A header's value, empty if it is not there.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().into()
    }

    /// The events of a stream: each one's JSON, and whether `[DONE]` ended it.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let data: Vec<&str> = self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let done = data.last() == Some(&"[DONE]");
        let events = data.iter().filter(|data| **data != "[DONE]");
        (events.map(|data| serde_json::from_str(data).expect("JSON")).collect(), done)
    }
}

/// A client that speaks plain text.
pub fn client() -> reqwest::Client {
    trusting(&Trust::nobody())
}

/// One that speaks TLS with those that `trust` goes by, too.
pub fn trusting(trust: &Trust) -> reqwest::Client {
    let builder = reqwest::Client::builder().tls_backend_preconfigured(trust.config_for(&[HTTP_1]));
    builder.build().expect("nothing is missing")
}

/// GET.
pub async fn get(url: &str) -> Reply {
    get_by(&client(), url).await
}

/// GET by a client.
pub async fn get_by(client: &reqwest::Client, url: &str) -> Reply {
    Reply::read(client.get(url).send().await.unwrap_or_else(|e| panic!("{url}: {e:?}"))).await
}

/// POST of JSON.
pub async fn post(url: &str, body: &Value) -> Reply {
    post_raw(url, "application/json", body.to_string().into_bytes()).await
}

/// POST of any bytes.
pub async fn post_raw(url: &str, content_type: &str, body: Vec<u8>) -> Reply {
    let request = client().post(url).header("content-type", content_type).body(body);
    Reply::read(request.send().await.unwrap_or_else(|e| panic!("{url}: {e:?}"))).await
}

/// POST of JSON with more headers.
pub async fn post_with(url: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    let request = client().post(url).header("content-type", "application/json");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Reply::read(request.body(body.to_string()).send().await.unwrap_or_else(|e| panic!("{url}: {e:?}"))).await
}

/// POST whose answer is read until `enough` says so, then hung up on.
pub async fn post_and_hang_up(url: &str, body: &Value, mut enough: impl FnMut(&str) -> bool) {
    let response = client().post(url).json(body).send().await;
    let mut chunks = response.unwrap_or_else(|e| panic!("{url}: {e:?}")).bytes_stream();
    let mut text = String::new();
    while let Some(chunk) = chunks.next().await {
        text.push_str(&String::from_utf8_lossy(&chunk.expect("a stream that goes on")));
        if enough(&text) {
            return;
        }
    }
    panic!("the answer ended before there was enough of it: {text}");
}
