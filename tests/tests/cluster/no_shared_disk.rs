//! Machines share no disk: each finds the model in folders of its own, and a coordinator needs none at all.

use std::path::{Path, PathBuf};

use foggara_proto::wire::files::FetchRequest;
use foggara_proto::wire::files::files_client::FilesClient;
use foggara_proto::wire::inference::{
    ChatMessage, ChatRequest, ListModelsRequest, SamplingParams, TokenizeRequest,
};
use foggara_tests::answer::Answer;
use foggara_tests::ask::Ask;
use foggara_tests::client::Client;
use foggara_tests::nodes::{Nodes, TOKEN};
use foggara_tests::process::{foggara, text};
use foggara_tests::reference::{Golden, Smol};
use foggara_tests::{machine, paths, wait};
use tonic::Code;

/// A file of its own, or the same one where the file system can.
fn place(from: &Path, to: &Path) {
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).unwrap();
    }
}

/// A copy of a Hugging Face folder's model. Tiny models are copied really, so that one copy can be changed.
fn place_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() != "expected.json" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn add(nodes: &Nodes, number: u16, arguments: &[&str]) -> std::process::Output {
    let endpoint = format!("http://{}", nodes.grpc(number));
    foggara(&[&["models", "add", "--endpoint", &endpoint, "--cluster-token", TOKEN], arguments].concat())
}

/// The prompt of a chat as a coordinator's template and tokenizer make it, and the first tokens of the answer.
async fn chat(client: &Client, model: &str, user: &str) -> Answer {
    let sampling =
        SamplingParams { max_tokens: Some(8), temperature: Some(0.0), ..SamplingParams::default() };
    let message = ChatMessage { role: "user".into(), content: user.into() };
    let messages = vec![message];
    let request =
        ChatRequest { model: model.into(), messages, sampling: Some(sampling), ..ChatRequest::default() };
    Answer::collect(client.inference().chat(request).await.unwrap().into_inner()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_without_the_model_serve_it_all_the_same() {
    let _machine = machine::shared().await;
    let mut nodes = Nodes::start("no-disk", 3, &[]);
    // Two workers hold the GGUF file, one under a folder of its name and one directly; a third holds the folder.
    let gguf = paths::smol_gguf();
    let file = gguf.file_name().unwrap();
    let (first, second, third) = (nodes.folder("first"), nodes.folder("second"), nodes.folder("third"));
    let own = first.join(Path::new(file).file_stem().unwrap());
    std::fs::create_dir_all(&own).unwrap();
    place(&gguf, &own.join(file));
    place(&gguf, &second.join(file));
    std::fs::create_dir_all(third.join("smol")).unwrap();
    for entry in
        std::fs::read_dir(paths::smol_bf16()).unwrap().flatten().filter(|entry| entry.path().is_file())
    {
        place(&entry.path(), &third.join("smol").join(entry.file_name()));
    }
    for folder in [&first, &second, &third] {
        nodes.worker(&["--models", path(folder)]);
    }
    nodes.wait_joined().await;

    let nowhere = add(&nodes, 0, &["nonesuch/model"]);
    let said = text(&nowhere);
    for word in ["nonesuch/model", "coordinator 1", "coordinator 2", "worker", "download it first"] {
        assert!(!nowhere.status.success() && said.contains(word), "{said}");
    }
    let name = file.to_str().unwrap();
    let added = add(&nodes, 1, &[&format!("gguf={name}"), "--tp", "2"]);
    assert!(added.status.success(), "{}", text(&added));
    let added = add(&nodes, 2, &["hf=smol", "--tp", "1"]);
    assert!(added.status.success(), "{}", text(&added));

    let reference = Smol::load();
    let mut answers = Vec::new();
    for number in 0..3 {
        let client = nodes.client(number);
        wait::until("both models are served", async || {
            let status = client.try_status().await.ok()?;
            status.deployments.iter().all(|d| d.state == "ready" && d.model_hash.len() == 64).then_some(())
        })
        .await;
        for model in ["gguf", "hf"] {
            for expected in &reference.chat {
                let answer = chat(&client, model, &expected.user).await;
                assert_eq!(
                    answer.started.prompt_token_ids, expected.prompt_tokens,
                    "{model}: {}",
                    expected.user
                );
                answers.push((model, expected.user.clone(), answer.token_ids));
            }
            let (text, ids) = (&reference.teacher_forced[0].text, &reference.teacher_forced[0].tokens);
            let request = TokenizeRequest { model: model.into(), text: text.clone(), no_special: false };
            assert_eq!(&client.inference().tokenize(request).await.unwrap().into_inner().ids, ids, "{model}");
        }
        let models = client.inference().list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
        assert!(models.len() == 2 && models.iter().all(|model| model.context == 8192), "{models:?}");
    }
    let per_coordinator = answers.len() / 3;
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, answers[number % per_coordinator], "every coordinator says the same");
    }
    strangers_get_no_files(&nodes).await;
}

/// Parts of files are for the cluster's own processes, and only such as belong to models that are deployed.
async fn strangers_get_no_files(nodes: &Nodes) {
    let status = nodes.client(0).status().await;
    let model = status.deployments.iter().find(|d| d.name == "hf").unwrap().model_hash.clone();
    let request =
        |model: &str, file: &str, bytes| FetchRequest { model: model.into(), file: file.into(), bytes };
    let ask = |addr: String, token, request| async move {
        let token = foggara_proto::auth::ClusterToken::new(token);
        let channel = Client::new(&addr).channel();
        FilesClient::with_interceptor(channel, token.shown())
            .fetch(request)
            .await
            .map(drop)
            .map_err(|e| e.code())
    };
    let holder = status.groups.iter().find(|group| group.deployment == "hf").unwrap().workers[0];
    let holder = status.workers.iter().find(|worker| worker.id == holder).unwrap().addr.clone();
    for addr in [holder, nodes.grpc(0)] {
        let config = request(&model, "config.json", 10);
        assert_eq!(ask(addr.clone(), None, config.clone()).await, Err(Code::Unauthenticated), "{addr}");
        assert_eq!(
            ask(addr.clone(), Some("wrong"), config.clone()).await,
            Err(Code::Unauthenticated),
            "{addr}"
        );
        assert_eq!(ask(addr.clone(), Some(TOKEN), config).await, Ok(()), "{addr}");
        for wrong in [
            request(&model, "../../../etc/passwd", 10),
            request(&model, "README.md", 10),
            request(&"0".repeat(64), "config.json", 10),
            request("x", "config.json", 10),
            request(&model, "model.safetensors", 1 << 30),
        ] {
            let code = ask(addr.clone(), Some(TOKEN), wrong.clone()).await.expect_err("refused");
            assert!(matches!(code, Code::NotFound | Code::InvalidArgument), "{wrong:?}: {code:?}");
        }
    }
}

/// Workers whose files are missing or differ say which, and another takes their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_missing_or_differ_are_named() {
    let _machine = machine::shared().await;
    let scratch = foggara_tests::scratch::Scratch::new("sources");
    let source: PathBuf = scratch.path().join("llama");
    place_folder(&paths::golden("llama"), &source);
    let mut nodes = Nodes::start("wrong-files", 1, &["--models", path(scratch.path())]);
    let (lacking, spoilt, right) = (nodes.folder("lacking"), nodes.folder("spoilt"), nodes.folder("right"));
    for folder in [&lacking, &spoilt, &right] {
        place_folder(&source, &folder.join("llama"));
    }
    std::fs::remove_file(lacking.join("llama/model.safetensors")).unwrap();
    let weights = spoilt.join("llama/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    for folder in [&lacking, &spoilt] {
        nodes.worker(&["--models", path(folder)]);
    }
    nodes.wait_joined().await;
    let added = add(&nodes, 0, &["llama", "--no-wait"]);
    assert!(added.status.success(), "{}", text(&added));
    let reason = nodes
        .wait_status("both workers' reasons are known", |status| {
            let reason = &status.deployments.first()?.reason;
            (reason.contains("is missing") && reason.contains("differs")).then(|| reason.clone())
        })
        .await;
    let size = bytes.len().to_string();
    for word in [path(&weights), path(&lacking.join("llama/model.safetensors")), "worker", &size, "hash"] {
        assert!(reason.contains(word), "no `{word}` in: {reason}");
    }

    nodes.worker(&["--models", path(&right)]);
    nodes
        .wait_status("the third worker serves it", |status| {
            (status.deployments.first()?.state == "ready").then_some(())
        })
        .await;
    let case = &Golden::load("llama").cases[0];
    let answer =
        nodes.client(0).ask(Ask::tokens("llama", &case.prompt).exactly(case.greedy.len() as u32)).await;
    assert_eq!(answer.token_ids, case.greedy);
}
