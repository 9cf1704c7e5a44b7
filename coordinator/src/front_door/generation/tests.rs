//! From outputs to deltas: stop strings across tokens, what is held back, and what is counted.

use super::*;
use crate::front_door::fixture::{FakeGenerator, model};
use crate::front_door::request::{Ask, Prompt, check};
use crate::router::GenerateError;
use crate::text::fixture::byte_tokenizer;

/// What came of a request: text, token ids, end.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    pieces: Vec<String>,
    ids: Vec<u32>,
    finish: Option<(FinishReason, Option<String>, Option<u32>, usize)>,
    error: Option<String>,
}

pub(super) fn request(ask: Ask) -> GenerationRequest {
    let model = Arc::new(model(Some(byte_tokenizer())));
    check(model, None, Prompt::Text("hi".into()), ask, true).map_err(|e| e.message).expect("valid")
}

async fn outcome(generator: FakeGenerator, ask: Ask) -> (Outcome, Arc<Metrics>) {
    let request = request(ask);
    let (generator, metrics): (Arc<dyn Generator>, _) = (Arc::new(generator), Arc::new(Metrics::new()));
    let mut stream = run(&generator, &metrics, &Timelines::default(), "test", request);
    let mut outcome = Outcome::default();
    while let Some(event) = stream.next().await {
        match event {
            Ok((0, Event::Prompt { text, .. })) => outcome.pieces.push(format!("echo {text}")),
            Ok((0, Event::Delta { text, tokens })) => {
                outcome.ids.extend(tokens.iter().map(|token| token.id));
                outcome.pieces.push(text);
            }
            Ok((0, Event::Finished { reason, stop_string, stop_token, usage })) => {
                assert_eq!(usage.prompt_tokens, 2);
                outcome.finish = Some((reason, stop_string, stop_token, usage.completion_tokens));
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => outcome.error = Some(error.message),
        }
    }
    (outcome, metrics)
}

pub(super) fn says(text: &str) -> FakeGenerator {
    FakeGenerator { text: text.into(), ..FakeGenerator::default() }
}

fn stop(strings: &[&str]) -> Ask {
    Ask { stop: strings.iter().map(|s| s.to_string()).collect(), ..Ask::default() }
}

#[tokio::test]
async fn answers_end_where_they_should() {
    let stopped = |string: &str, count| Some((FinishReason::Stop, Some(string.to_owned()), None, count));
    for (text, ask, shown, finish) in [
        ("abc", Ask::default(), "abc", Some((FinishReason::Stop, None, Some(256), 4))),
        (
            "abc",
            Ask { max_tokens: Some(2), ..Ask::default() },
            "ab",
            Some((FinishReason::Length, None, None, 2)),
        ),
        (
            "ab",
            Ask { ignore_eos: true, max_tokens: Some(5), ..Ask::default() },
            "ab",
            Some((FinishReason::Length, None, None, 5)),
        ),
        (
            "abc",
            Ask { stop_token_ids: vec![98], ..Ask::default() },
            "a",
            Some((FinishReason::Stop, None, Some(98), 2)),
        ),
        ("one, two, three", stop(&["two"]), "one, ", stopped("two", 8)),
        ("one, two, three", stop(&["thr", ", "]), "one", stopped(", ", 5)),
        ("ends with st", stop(&["stop"]), "ends with st", Some((FinishReason::Stop, None, Some(256), 13))),
        ("日本語です", stop(&["語"]), "日本", stopped("語", 9)),
        ("one, two", Ask { include_stop: true, ..stop(&["e,"]) }, "one,", stopped("e,", 4)),
        (
            "abc",
            Ask { include_stop: true, stop_token_ids: vec![98], ..Ask::default() },
            "ab",
            Some((FinishReason::Stop, None, Some(98), 2)),
        ),
        (
            "ab",
            Ask { include_stop: true, ..Ask::default() },
            "ab",
            Some((FinishReason::Stop, None, Some(256), 3)),
        ),
        (
            "ab",
            Ask { include_stop: true, special: true, ..Ask::default() },
            "ab<|end|>",
            Some((FinishReason::Stop, None, Some(256), 3)),
        ),
        ("aabaab", Ask { min_tokens: 3, ..stop(&["ab"]) }, "aaba", stopped("ab", 6)),
        ("aabaab", Ask { min_tokens: 2, ..stop(&["ab"]) }, "a", stopped("ab", 3)),
        (
            "日本語",
            Ask { max_tokens: Some(4), ..Ask::default() },
            "日\u{fffd}",
            Some((FinishReason::Length, None, None, 4)),
        ),
    ] {
        let (outcome, metrics) = outcome(says(text), ask.clone()).await;
        assert_eq!((outcome.pieces.concat().as_str(), &outcome.finish), (shown, &finish), "{text:?} {ask:?}");
        let count = finish.map_or(0, |(_, _, _, count)| count);
        assert_eq!(outcome.ids.len(), count, "as many ids as are counted");
        let counted = metrics.generated_tokens.with_label_values(&["m"]).get();
        assert_eq!(counted, count as u64);
        assert_eq!(metrics.requests_in_progress(), 0);
    }
}

#[tokio::test]
async fn text_waits_only_while_it_may_be_the_beginning_of_a_stop_string() {
    let (outcome, _) = outcome(says("a <b> c"), stop(&["<br>"])).await;
    assert_eq!(outcome.pieces, ["a", " ", "", "", "<b>", " ", "c", ""]);
}

#[tokio::test]
async fn the_echo_comes_first() {
    for (logprobs, max_tokens, pieces) in [
        (None, 2, vec!["echo hi", "a", "b"]),
        (Some(1), 2, vec!["echo hi", "a", "b"]),
        (None, 0, vec!["echo hi"]),
        (Some(0), 0, vec!["echo hi"]),
    ] {
        let ask = Ask { echo: true, logprobs, max_tokens: Some(max_tokens), ..Ask::default() };
        let (outcome, _) = outcome(says("abc"), ask).await;
        assert_eq!(outcome.pieces, pieces);
        let expected = (FinishReason::Length, None, None, max_tokens as usize);
        assert_eq!((outcome.finish, outcome.error), (Some(expected), None));
    }
}

#[tokio::test]
async fn failures_and_clients_that_leave_are_counted_as_what_they_are() {
    let error = GenerateError::Unavailable { model: "m".into(), reason: "gone".into() };
    let generator = FakeGenerator { fails: Some((2, error)), ..says("abc") };
    let (outcome, metrics) = outcome(generator, Ask::default()).await;
    assert_eq!((outcome.pieces.concat().as_str(), outcome.finish), ("ab", None));
    assert!(outcome.error.is_some_and(|message| message.contains("gone")));
    assert_eq!(metrics.requests.with_label_values(&["m", "test", "unavailable"]).get(), 1);

    let generator = Arc::new(FakeGenerator { hangs: Some(2), ..says("abc") });
    let request = request(Ask::default());
    let dynamic: Arc<dyn Generator> = generator.clone();
    let mut stream = run(&dynamic, &metrics, &Timelines::default(), "test", request);
    stream.next().await;
    assert_eq!(metrics.requests_in_progress(), 1);
    drop(stream);
    assert_eq!(metrics.requests_in_progress(), 0);
    assert_eq!(metrics.requests.with_label_values(&["m", "test", "cancelled"]).get(), 1);
    assert_eq!(generator.open.load(std::sync::atomic::Ordering::SeqCst), 0, "the sequence is let go");
}
