//! Everything over TLS: clients, coordinators, workers, Prometheus; with certificates that `foggara certificates` makes.

use std::path::Path;
use std::process::Command;

use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::certificates::{Certificates, dialer, options};
use foggara_tests::client::Client;
use foggara_tests::cluster::Cluster;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{foggara, text};
use foggara_tests::prometheus::{Prometheus, Rules};
use foggara_tests::scratch::Scratch;
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use foggara_tls::making::{Pair, issue};
use foggara_tls::{SPEAKS_TLS, Trust, now};
use rustix::process::Signal;

use crate::failover::{ask, disturbed, same, with_all};

const HOST: &str = "127.0.0.1";
const ALERT: &str = "FoggaraCertificateExpires";

/// What `foggara status` says of the coordinator at `url`, by the authority `ca`.
fn status(url: &str, ca: Option<&Path>) -> (bool, String) {
    let ca = ca.map(|path| path.display().to_string());
    let trust: Vec<&str> = ca.iter().flat_map(|path| ["--tls-ca", path]).collect();
    let output = foggara(&[&["status", "--endpoint", url], &trust[..]].concat());
    (output.status.success(), text(&output))
}

/// Preflight of a worker that is to join the coordinator named first.
fn doctor(more: &[&str]) -> std::process::Output {
    foggara(&[&["doctor", "--worker", "--join"], more].concat())
}

/// A program that fetches a page; `None` where it is not installed.
fn curl(arguments: &[&str]) -> Option<String> {
    let output = Command::new("curl").args(["--silent", "--show-error"]).args(arguments).output().ok()?;
    Some(text(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_speaks_tls_and_nothing_else() {
    let _machine = machine::shared().await;
    let folder = Scratch::new("certificates");
    let ours = Certificates::new(&folder.path().join("ours"));
    let theirs = Certificates::new(&folder.path().join("theirs"));
    let files = ours.issue(&[HOST]);
    let setup = Setup::new("encrypted").model("smol", &paths::smol_gguf()).workers(2).tls(&files);
    let cluster = setup.start().await;
    assert!(cluster.ready_line().starts_with("ready https://127.0.0.1:"), "{}", cluster.ready_line());

    clients_that_others_wrote(&cluster, &ours.ca());
    words_for_whoever_does_it_wrong(&cluster, &ours, &theirs).await;
    nothing_is_lost_with_a_driver(&cluster).await;
    certificates_are_taken_from_the_disk(&cluster, &ours).await;
    an_end_that_is_near_is_told(&cluster, &ours).await;
}

fn clients_that_others_wrote(cluster: &Cluster, ca: &Path) {
    let script = paths::root().join("tests/clients/openai_client.py");
    let mut python = Command::new(paths::python());
    let output = python.arg(script).args([&cluster.http(0), "smol"]).arg(ca).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let trusted = ca.display().to_string();
    if let Some(page) = curl(&["--cacert", &trusted, &format!("{}/v1/models", cluster.http(1))]) {
        assert!(page.contains("\"smol\""), "{page}");
        // The other port answers both protocols, too.
        let page = curl(&["--cacert", &trusted, &format!("https://{}/healthz", cluster.grpc(1)), "--http2"]);
        assert!(page.is_some_and(|page| page.contains("ok")));
    }
}

async fn words_for_whoever_does_it_wrong(cluster: &Cluster, ours: &Certificates, theirs: &Certificates) {
    let address = cluster.grpc(0);
    let refused = Client::new(&address).try_ask(Ask::text("smol", "a").max_tokens(1)).await;
    let refused = refused.expect_err("in plain text");
    assert_eq!((refused.code(), refused.message()), (tonic::Code::Unavailable, SPEAKS_TLS));
    let page = http::get(&format!("http://{address}/v1/models")).await;
    assert_eq!((page.status, page.text.trim()), (400, SPEAKS_TLS));

    let ca = ours.ca();
    let told = [
        (address.clone(), Some(ca.clone()), true, "leader"),
        (format!("https://{address}"), Some(ca.clone()), true, "leader"),
        (format!("http://{address}"), None, false, SPEAKS_TLS),
        (address.clone(), Some(theirs.ca()), false, "is not signed by "),
        (address.replace(HOST, "localhost"), Some(ca), false, "is for 127.0.0.1, not for localhost"),
        (format!("https://{address}"), None, false, "is not signed by any authority of this system"),
    ];
    for (url, ca, succeeds, says) in told {
        let (succeeded, said) = status(&url, ca.as_deref());
        assert_eq!(succeeded, succeeds, "{url}: {said}");
        assert!(said.contains(says), "{url}: {said}");
    }
    for (ca, succeeds, says) in
        [(ours.ca(), true, "answers, "), (theirs.ca(), false, "there is no TLS with it: the certificate of")]
    {
        let output = doctor(&[&address, "--tls-ca", &ca.display().to_string()]);
        let said = text(&output);
        assert!(output.status.success() == succeeds && said.contains(says), "{said}");
    }
    let said = text(&doctor(&[&address]));
    assert!(said.contains("speaks TLS, and without --tls-ca"), "{said}");
    let own = options(&ours.issue(&["10.0.0.1"]));
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let said = text(&doctor(&[&[address.as_str(), "--listen", "127.0.0.1:0"], &own[..]].concat()));
    assert!(said.contains("10.0.0.1.crt is for 10.0.0.1, not for 127.0.0.1"), "{said}");

    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain_address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = plain.accept().unwrap();
        stream.read_exact(&mut [0; 64]).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let (_, said) = status(&plain_address.to_string(), Some(&ours.ca()));
    assert!(said.contains("this is a plain-text port: use http://"), "{said}");
}

async fn nothing_is_lost_with_a_driver(cluster: &Cluster) {
    let undisturbed = cluster.client(0).ask(ask()).await;
    let status = with_all(cluster, 3).await;
    let driver = status.groups[0].driver;
    let victim = status.coordinators.iter().find(|c| c.id == driver).expect("it is a member").pid;
    let other = (0..3).find(|number| u64::from(*number) + 1 != driver).expect("there are three");
    same(&disturbed(cluster, other, &[victim], Signal::KILL).await, &undisturbed, "driver killed");
    with_all(cluster, 3).await;
}

async fn certificates_are_taken_from_the_disk(cluster: &Cluster, ours: &Certificates) {
    let client = cluster.client(0);
    let mut stream = client.stream(ask().build()).await.unwrap();
    let mut answer = Answer::default();
    assert!(answer.next(&mut stream).await.unwrap());
    ours.issue(&[HOST, "localhost"]);
    let url = cluster.grpc(0).replace(HOST, "localhost");
    let ca = ours.ca();
    wait::until("the new certificate is shown", async || status(&url, Some(&ca)).0.then_some(())).await;
    while answer.next(&mut stream).await.expect("the connection from before goes on") {}
    assert!(answer.ended_by_length());
}

/// With a certificate of ten days, half a day of which is left.
async fn an_end_that_is_near_is_told(cluster: &Cluster, ours: &Certificates) {
    let doors: Vec<String> = (0..3).map(|number| cluster.http(number)).collect();
    let rules = Rules::shorter(1000);
    let prometheus = Prometheus::trusting(&doors, &rules, Some(&ours.ca())).await;
    prometheus.wait_clear(&[ALERT]).await;
    let read = |path| std::fs::read_to_string(path).unwrap();
    let authority = Pair { certificate: read(ours.ca()), key: read(ours.ca_key()) };
    let old = issue(&authority, &[HOST.into()], 10, now() - 9 * 86_400 - 43_200).unwrap();
    let files = ours.issue(&[HOST]);
    std::fs::write(&files.certificate, old.certificate).unwrap();
    std::fs::write(&files.key, old.key).unwrap();
    prometheus.wait_firing(&[ALERT]).await;
    ours.issue(&[HOST]);
    prometheus.wait_clear(&[ALERT]).await;
}

/// Whoever has a certificate by somebody else's authority is no member, though it has the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_not_talked_to() {
    let _machine = machine::shared().await;
    let folder = Scratch::new("strangers");
    let ours = Certificates::new(&folder.path().join("ours"));
    let theirs = Certificates::new(&folder.path().join("theirs"));
    let (own, strange) = (options(&ours.issue(&[HOST])), options(&theirs.issue(&[HOST])));
    let words = |options: &[String]| options.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let (own, strange) = (words(&own), words(&strange));
    let (own, strange): (Vec<&str>, Vec<&str>) = (own.lines().collect(), strange.lines().collect());
    let mut nodes = Nodes::start("strangers", 3, &own);
    let dialer = dialer(&ours.ca());
    let client = |nodes: &Nodes| Client::by(&dialer, &nodes.grpc(0), Some(TOKEN));
    let met = |nodes: &Nodes| {
        let client = client(nodes);
        async move {
            let status = client.try_status().await.ok()?;
            let versions = status.coordinators.iter().filter(|one| !one.version.is_empty()).count();
            (status.leader != 0).then_some(versions)
        }
    };
    wait::until("all three have met", async || (met(&nodes).await? == 3).then_some(())).await;
    nodes.worker(&own);
    wait::until("the worker has joined", async || {
        (client(&nodes).try_status().await.ok()?.workers.len() == 1).then_some(())
    })
    .await;

    nodes.restart_coordinator(2, &strange);
    wait::until("both say why they do not talk", async || {
        let says = |log: String| log.contains("is not signed by").then_some(());
        says(nodes.process_of(0).log())?;
        says(nodes.process_of(2).log())
    })
    .await;
    wait::until("two go on without the third", async || (met(&nodes).await? == 2).then_some(())).await;
    let page = http::trusting(&Trust::of_client(Some(&ours.ca())).unwrap());
    let stranger = page.get(nodes.http_url(2).replace("http://", "https://")).send().await;
    assert!(stranger.is_err(), "nor does a client that goes by ours");
}
