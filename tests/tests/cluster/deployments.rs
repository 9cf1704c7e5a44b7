//! Models come and go while the cluster serves.

use foggara_tests::ask::Ask;
use foggara_tests::process::{foggara, text};
use foggara_tests::setup::Setup;
use foggara_tests::{http, machine, paths, wait};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_added_listed_and_removed() {
    let _machine = machine::shared().await;
    let setup = Setup::new("deployments").model("first", &paths::golden("llama")).workers(3).option("tp", 1);
    let cluster = setup.start().await;
    let endpoint = format!("http://{}", cluster.grpc(1));
    let run = |arguments: &[&str]| {
        let output = foggara(&[arguments, &["--endpoint", &endpoint]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let model = format!("second={}", paths::golden("llama3-rope").display());
    // Ready is said when the first model is served, which needs one worker.
    cluster
        .wait_status(1, "the other workers are there", |status| {
            (status.workers.iter().filter(|w| w.state == "idle").count() == 2).then_some(())
        })
        .await;
    let plan = run(&["models", "plan", &model, "--tp", "2", "--json"]);
    assert!(plan.contains("\"tokens_per_second\"") && plan.contains("\"missing\": null"), "{plan}");
    for round in 0..machine::rounds(2, 20) {
        let said = run(&["models", "add", &model, "--tp", "2"]);
        assert!(said.contains("second: ready"), "{said}");
        let list = run(&["models", "list"]);
        assert!(list.contains("first") && list.contains("second"), "{list}");
        for number in 0..3 {
            wait::until("the model is served", async || {
                let url = format!("{}/v1/models/second", cluster.http(number));
                (http::get(&url).await.status == 200).then_some(())
            })
            .await;
            cluster.wait_ready(number).await;
            for name in ["first", "second"] {
                let answer = cluster.client(number).ask(Ask::tokens(name, &[3, 4]).exactly(8)).await;
                assert_eq!(
                    (answer.token_ids.len(), answer.started.model.as_str()),
                    (8, name),
                    "round {round}"
                );
            }
        }
        let unnamed = cluster.client(0).try_ask(Ask::tokens("", &[3, 4]).exactly(8)).await.unwrap_err();
        assert_eq!(unnamed.code(), Code::InvalidArgument, "which of two? {}", unnamed.message());
        run(&["models", "remove", "second"]);
        for number in 0..3 {
            wait::until("the model is not served any more", async || {
                let url = format!("{}/v1/models/second", cluster.http(number));
                (http::get(&url).await.status == 404).then_some(())
            })
            .await;
            let gone =
                cluster.client(number).try_ask(Ask::tokens("second", &[3]).exactly(1)).await.unwrap_err();
            assert_eq!(gone.code(), Code::NotFound, "{}", gone.message());
            let only = cluster.client(number).ask(Ask::tokens("", &[3, 4]).exactly(8)).await;
            assert_eq!(only.started.model, "first", "the only one needs no name");
        }
        cluster
            .wait_status(0, "its workers are idle again", |status| {
                (status.workers.iter().filter(|w| w.state == "idle").count() == 2).then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_model_from_being_served_is_said_everywhere() {
    let _machine = machine::shared().await;
    let setup = Setup::new("obstacles").model("first", &paths::golden("llama")).workers(2).option("tp", 1);
    let cluster = setup.start().await;
    let endpoint = format!("http://{}", cluster.grpc(2));
    let big = format!("big={}", paths::golden("llama").display());
    let added = foggara(&["models", "add", &big, "--tp", "4", "--no-wait", "--endpoint", &endpoint]);
    assert!(added.status.success(), "{}", text(&added));
    for number in 0..3 {
        cluster
            .wait_status(number, "the reason is known", |status| {
                let big = status.deployments.iter().find(|deployment| deployment.name == "big")?;
                (big.state == "pending" && big.reason == "4 idle workers are needed, there are 1")
                    .then_some(())
            })
            .await;
    }
    let listed = foggara(&["models", "list", "--endpoint", &endpoint]);
    assert!(text(&listed).contains("pending: 4 idle workers are needed"), "{}", text(&listed));
    let removed = foggara(&["models", "remove", "big", "--endpoint", &endpoint]);
    assert!(removed.status.success(), "{}", text(&removed));
    cluster.wait_ready(0).await;
    let answer = cluster.client(0).ask(Ask::tokens("first", &[3, 4]).exactly(8)).await;
    assert_eq!(answer.token_ids.len(), 8, "the others were served all along");
}

/// While models come and go on other workers, nothing of what one serves fails or changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adding_and_removing_a_model_disturbs_no_other() {
    let _machine = machine::shared().await;
    let setup = Setup::new("undisturbed").model("first", &paths::golden("llama")).workers(2).option("tp", 1);
    let cluster = setup.start().await;
    let ask =
        |number: u32| Ask::tokens("first", &[3 + number, 4]).exactly(200).sampled(0.8, 0.9, 5).logprobs(1);
    let mut expected = Vec::new();
    for number in 0..4 {
        expected.push(cluster.client(0).ask(ask(number)).await.bits());
    }
    let epoch = cluster.status().await.groups[0].epoch;
    let done = std::sync::atomic::AtomicBool::new(false);
    let load = |number: u32| {
        let (client, expected, done) = (cluster.client(number as u16 % 3), &expected[number as usize], &done);
        async move {
            let mut answers = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(&client.ask(ask(number)).await.bits(), expected, "stream {number}");
                answers += 1;
            }
            answers
        }
    };
    let disturb = async {
        let endpoint = format!("http://{}", cluster.grpc(1));
        let model = format!("second={}", paths::golden("llama3-rope").display());
        for round in 0..machine::rounds(5, 50) {
            for arguments in [["models", "add", model.as_str()], ["models", "remove", "second"]] {
                let arguments = [&arguments[..], &["--endpoint", &endpoint]].concat();
                let owned: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
                let run = move || foggara(&owned.iter().map(String::as_str).collect::<Vec<_>>());
                let output = tokio::task::spawn_blocking(run).await.unwrap();
                assert!(output.status.success(), "round {round}, {arguments:?}: {}", text(&output));
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let loads = futures::future::join_all((0..4).map(load));
    let (answers, ()) = tokio::join!(loads, disturb);
    assert!(answers.iter().all(|count| *count > 0), "{answers:?} answers");
    assert_eq!(cluster.status().await.groups[0].epoch, epoch, "its group was left alone");
    cluster.wait_idle("first").await;
}

/// What the command line prints is what the service says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_generates_and_chats() {
    let _machine = machine::shared().await;
    let cluster = crate::shared::SMOL.get().await;
    let prompt = "The capital of France is";
    let answer = cluster.client(0).ask(Ask::text("smol", prompt).max_tokens(12)).await;
    for number in 0..3 {
        let endpoint = cluster.http(number);
        let generate =
            ["generate", "--endpoint", &endpoint, "--max-tokens", "12", "--temperature", "0", prompt];
        let output = foggara(&generate);
        assert!(output.status.success(), "{}", text(&output));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(answer.text.trim()), "{said:?} for {:?}", answer.text);
    }
    let chat = ["chat", "--endpoint", &cluster.http(1), "--max-tokens", "24", "--temperature", "0"];
    let output = foggara(&[&chat[..], &["What is the capital of Algeria?"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("Algeria"), "{}", text(&output));
    let unknown = foggara(&[&chat[..], &["--model", "nonesuch", "hello"]].concat());
    assert!(!unknown.status.success() && text(&unknown).contains("nonesuch"), "{}", text(&unknown));
}
