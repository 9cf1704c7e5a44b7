//! At the command line: what operators and files get wrong.

use std::path::Path;

use foggara_tests::process::{foggara, text};
use foggara_tests::scratch::Scratch;
use foggara_tests::{machine, paths};

use crate::shared::TINY;

/// Runs a command that must fail, and say all of this.
fn fails(arguments: &[&str], says: &[&str]) {
    let output = foggara(arguments);
    let said = text(&output);
    assert!(!output.status.success(), "{arguments:?} did not fail: {said}");
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    for word in says {
        assert!(said.contains(word), "{arguments:?} does not say `{word}`: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_beyond_this_machine_needs_a_token() {
    let _machine = machine::shared().await;
    let scratch = Scratch::new("listen");
    let data = scratch.path().to_str().expect("UTF-8");
    let model = paths::golden("llama");
    let model = model.to_str().expect("UTF-8");
    let says = ["loopback", "--cluster-token"];
    fails(
        &[
            "coordinator",
            "--id",
            "1",
            "--peers",
            "1=127.0.0.1:1",
            "--grpc",
            "0.0.0.0:0",
            "--http",
            "127.0.0.1:0",
            "--data-dir",
            data,
        ],
        &says,
    );
    fails(
        &[
            "coordinator",
            "--id",
            "1",
            "--peers",
            "1=127.0.0.1:1",
            "--grpc",
            "127.0.0.1:0",
            "--http",
            "[::]:0",
            "--data-dir",
            data,
        ],
        &says,
    );
    fails(&["worker", "--join", "127.0.0.1:1", "--listen", "0.0.0.0:0"], &says);
    fails(&["up", "--model", model, "--http", "0.0.0.0:18080", "--grpc", "127.0.0.1:18081"], &says);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_models_are_named_with_the_reason() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let endpoint = format!("http://{}", cluster.grpc(0));
    let scratch = Scratch::new("damaged");
    let gguf = std::fs::read(paths::smol_gguf()).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut magic = gguf[..1 << 20].to_vec();
    magic[..4].copy_from_slice(b"GGML");
    let mut version = gguf[..1 << 20].to_vec();
    version[4] = 77;
    let mut counts = gguf[..1 << 20].to_vec();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let folder = |name: &str, change: &dyn Fn(&Path)| {
        let folder = scratch.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(paths::golden("llama").join(file), folder.join(file)).unwrap();
        }
        change(&folder);
        folder
    };
    let cut = |folder: &Path| {
        let weights = folder.join("model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        std::fs::write(weights, &bytes[..bytes.len() / 2]).unwrap();
    };
    let nonsense = |folder: &Path| std::fs::write(folder.join("config.json"), "{").unwrap();
    let unknown = |folder: &Path| {
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config =
            config.replace("LlamaForCausalLM", "NoSuchForCausalLM").replace("\"llama\"", "\"nosuch\"");
        std::fs::write(folder.join("config.json"), config).unwrap();
    };
    for (path, reason) in [
        (write("header-cut.gguf", &gguf[..2000]), "end"),
        (write("weights-cut.gguf", &gguf[..gguf.len() / 2]), "tensor"),
        (write("magic.gguf", &magic), "GGUF"),
        (write("version.gguf", &version), "version"),
        (write("counts.gguf", &counts), ""),
        (write("empty.gguf", b""), ""),
        (folder("weights-cut", &cut), "model.safetensors"),
        (folder("no-config", &nonsense), "config.json"),
        (folder("no-such-architecture", &unknown), "NoSuchForCausalLM"),
        (scratch.path().join("missing.gguf"), ""),
    ] {
        let path = path.to_str().expect("UTF-8");
        fails(
            &["models", "add", &format!("damaged={path}"), "--tp", "1", "--endpoint", &endpoint],
            &[path, reason],
        );
    }
    let status = cluster.status().await;
    assert_eq!(status.deployments.len(), 1, "nothing was deployed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named() {
    let _machine = machine::shared().await;
    let cluster = TINY.get().await;
    let (model, taken) = (paths::golden("llama"), cluster.grpc(1));
    let arguments =
        ["up", "--model", model.to_str().expect("UTF-8"), "--http", "127.0.0.1:19999", "--grpc", &taken];
    fails(&arguments, &["grpc", &taken]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers() {
    let _machine = machine::shared().await;
    fails(&["status", "--endpoint", "http://127.0.0.1:9"], &["127.0.0.1:9"]);
    fails(&["generate", "--endpoint", "http://127.0.0.1:9", "hello"], &["127.0.0.1:9"]);
}
