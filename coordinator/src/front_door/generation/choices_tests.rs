//! Several choices, and tokens that come many at once.

use foggara_proto::sequence::{SequenceEnd, TokenOutput};
use proptest::prelude::*;

use super::tests::{request, says};
use super::*;
use crate::front_door::fixture::FakeGenerator;
use crate::front_door::request::Ask;
use crate::router::GenerateError;
use crate::text::fixture::END;

/// Every event of a request, by choice, and the error that ended it.
async fn choices(generator: FakeGenerator, ask: Ask) -> (Vec<Vec<Event>>, Option<String>, Arc<Metrics>) {
    let request = request(ask);
    let mut choices = vec![Vec::new(); request.n];
    let open = Arc::clone(&generator.open);
    let (generator, metrics): (Arc<dyn Generator>, _) = (Arc::new(generator), Arc::new(Metrics::new()));
    let mut stream = run(&generator, &metrics, &Timelines::default(), "test", request);
    let mut error = None;
    while let Some(event) = stream.next().await {
        assert!(error.is_none(), "nothing after an error");
        match event {
            Ok((index, event)) => choices[index].push(event),
            Err(e) => error = Some(e.message),
        }
    }
    drop(stream);
    assert_eq!(open.load(std::sync::atomic::Ordering::SeqCst), 0, "every sequence is let go");
    (choices, error, metrics)
}

#[tokio::test]
async fn choices_are_told_apart_and_the_prompt_is_counted_once() {
    let (choices, error, metrics) = choices(says("ab"), Ask { n: Some(3), ..Ask::default() }).await;
    assert_eq!(error, None);
    for (index, events) in choices.iter().enumerate() {
        let deltas = events.iter().filter(|event| matches!(event, Event::Delta { .. })).count();
        let prompt_tokens = if index == 0 { 2 } else { 0 };
        let usage = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: 3 };
        let (reason, stop_token) = (FinishReason::Stop, Some(END));
        let end = Event::Finished { reason, stop_string: None, stop_token, usage };
        assert_eq!((deltas, events.last()), (3, Some(&end)), "choice {index}");
    }
    assert_eq!(metrics.prompt_tokens.with_label_values(&["m"]).get(), 2);
    assert_eq!(metrics.generated_tokens.with_label_values(&["m"]).get(), 9);
    assert_eq!(metrics.requests.with_label_values(&["m", "test", "stop"]).get(), 1, "one request");
    assert_eq!(metrics.requests_in_progress(), 0);
}

#[tokio::test]
async fn every_choice_begins_with_the_prompt() {
    let ask = Ask { n: Some(2), echo: true, logprobs: Some(1), prompt_logprobs: Some(0), ..Ask::default() };
    let (choices, _, _) = choices(says("ab"), ask).await;
    for events in choices {
        let Some(Event::Prompt { text, tokens, scored }) = events.first() else { panic!("{events:?}") };
        assert_eq!((text.as_str(), tokens.len(), scored.len()), ("hi", 2, 2));
        assert_eq!((tokens[1].top.len(), scored[1].top.len()), (1, 0), "each with as many as were asked for");
        let prompts = events.iter().filter(|event| matches!(event, Event::Prompt { .. })).count();
        assert_eq!((prompts, events.len()), (1, 5));
    }
}

#[tokio::test]
async fn the_failure_of_one_choice_ends_them_all() {
    let gone = GenerateError::Unavailable { model: "m".into(), reason: "gone".into() };
    let failing = Some("r#1".into());
    let generator = FakeGenerator { fails: Some((1, gone)), failing, ..says(&"x".repeat(90)) };
    let ask = Ask { n: Some(3), request_id: "r".into(), ..Ask::default() };
    let (choices, error, metrics) = choices(generator, ask).await;
    let error = error.expect("it fails");
    assert!(error.starts_with("choice 1 of 3: ") && error.contains("gone"), "{error}");
    let ended = choices.iter().flatten().filter(|event| matches!(event, Event::Finished { .. })).count();
    assert_eq!(ended, 0);
    assert_eq!(metrics.requests.with_label_values(&["m", "test", "unavailable"]).get(), 1);
    assert_eq!(metrics.requests_in_progress(), 0);
}

/// What comes of `ids` in chunks of these sizes: text, tokens, and the last event.
fn told(
    request: &GenerationRequest,
    ids: &[u32],
    end: SequenceEnd,
    sizes: &[usize],
) -> (String, Vec<Token>, Event) {
    let mut shape = Shape::new(request, 0);
    let (mut shown, mut tokens, mut rest) = (String::new(), Vec::new(), ids);
    for size in sizes.iter().cycle() {
        let (now, later) = rest.split_at(rest.len().min(*size));
        rest = later;
        let outputs = now.iter().map(|id| TokenOutput { token: *id, logprob: None, top: vec![] }).collect();
        let (delta, finished) = shape.tokens(outputs, rest.is_empty().then_some(end));
        if let Some(Event::Delta { text, tokens: new }) = delta {
            shown.push_str(&text);
            tokens.extend(new);
        }
        if let Some(finished) = finished {
            return (shown, tokens, finished);
        }
    }
    unreachable!("the last chunk ends it")
}

proptest! {
    /// Tokens may come one by one or many at once (after a fault, or from a slow connection).
    #[test]
    fn the_text_does_not_depend_on_how_many_tokens_come_at_once(
        text in "[abé😀]{0,12}",
        cut in 0usize..3,
        stops in prop::collection::vec("[abé]{1,3}", 0..3),
        (min_tokens, include_stop, special, stopped) in (0u32..6, any::<bool>(), any::<bool>(), any::<bool>()),
        sizes in prop::collection::vec(1usize..7, 1..8),
    ) {
        let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
        ids.truncate(ids.len().saturating_sub(cut));
        let end = if stopped { SequenceEnd::StopToken } else { SequenceEnd::Length };
        ids.extend(stopped.then_some(END));
        let request = request(Ask { stop: stops.clone(), min_tokens, include_stop, special, ..Ask::default() });
        let chunked = told(&request, &ids, end, &sizes);
        prop_assert_eq!(&told(&request, &ids, end, &[1]), &chunked);
        let (shown, tokens, finished) = chunked;
        let Event::Finished { stop_string, usage, .. } = finished else { unreachable!("it ends so") };
        prop_assert_eq!(usage.completion_tokens, tokens.len());
        match stop_string {
            Some(stop) => {
                prop_assert!(!include_stop || shown.ends_with(&stop));
                prop_assert!(tokens.len() > min_tokens as usize, "not before min_tokens");
            }
            None if min_tokens == 0 => prop_assert!(!stops.iter().any(|stop| shown.contains(stop)), "{}", shown),
            None => {}
        }
    }
}
