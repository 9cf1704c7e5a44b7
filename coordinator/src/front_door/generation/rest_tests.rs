//! Streams that begin in the middle: with the part before it, they are the whole.

use foggara_proto::sequence::{SequenceEnd, TokenOutput};
use proptest::prelude::*;

use super::tests::{request, says};
use super::*;
use crate::front_door::api_error::Kind;
use crate::front_door::fixture::FakeGenerator;
use crate::front_door::request::Ask;
use crate::text::fixture::END;

/// The events of a request of which the client has so many tokens, by choice, and the error that ended it.
async fn told(
    generator: FakeGenerator,
    ask: &Ask,
    received: &[usize],
) -> (Vec<Vec<Event>>, Option<ApiError>) {
    let mut request = request(ask.clone());
    request.received = received.to_vec();
    let (mut choices, mut error) = (vec![Vec::new(); request.n], None);
    let (generator, metrics): (Arc<dyn Generator>, _) = (Arc::new(generator), Arc::new(Metrics::new()));
    let mut stream = run(&generator, &metrics, &Timelines::default(), "test", request);
    while let Some(event) = stream.next().await {
        match event {
            Ok((index, event)) => choices[index].push(event),
            Err(e) => error = Some(e),
        }
    }
    (choices, error)
}

/// Text and tokens of the deltas, and the end.
fn gathered(events: &[Event]) -> (String, Vec<Token>, Option<Event>) {
    let (mut shown, mut ids, mut end) = (String::new(), Vec::new(), None);
    for event in events {
        match event {
            Event::Prompt { .. } => {}
            Event::Delta { text, tokens } => {
                shown.push_str(text);
                ids.extend(tokens.iter().cloned());
            }
            Event::Finished { .. } => end = Some(event.clone()),
        }
    }
    (shown, ids, end)
}

#[tokio::test]
async fn every_place_to_go_on_from_gives_the_same_answer() {
    let stop = |text: &str| Ask { stop: vec![text.into()], ..Ask::default() };
    for (text, ask) in [
        ("abc", Ask::default()),
        ("日本語", Ask { max_tokens: Some(4), ..Ask::default() }),
        ("one, two, three", stop("two")),
        ("ends with st", stop("stop")),
        ("ends with st", Ask { max_tokens: Some(12), ..stop("stop") }),
        ("abc", Ask { include_stop: true, special: true, logprobs: Some(1), ..Ask::default() }),
    ] {
        let (whole, _) = told(says(text), &ask, &[]).await;
        let tokens = whole[0].iter().filter(|event| matches!(event, Event::Delta { .. })).count();
        for received in 0..=tokens {
            // One token comes in each event, so so many deltas have been received.
            let had: Vec<Event> = whole[0].iter().take(received).cloned().collect();
            let (rest, error) = told(says(text), &ask, &[received]).await;
            assert_eq!(error, None);
            let joined = [had, rest[0].clone()].concat();
            assert_eq!(gathered(&joined), gathered(&whole[0]), "{text:?} {ask:?} {received}");
        }
        let (rest, error) = told(says(text), &ask, &[tokens + 1]).await;
        let error = error.expect("there are not so many");
        assert_eq!((error.kind, error.field, rest), (Kind::Invalid, Some("tokens_received"), vec![vec![]]));
        assert!(error.message.contains(&format!("ended after {tokens}")), "{}", error.message);
    }
}

#[tokio::test]
async fn the_prompt_is_told_to_answers_that_have_not_begun() {
    let ask = Ask { n: Some(3), echo: true, logprobs: Some(0), ..Ask::default() };
    let prompts = |choices: &[Vec<Event>]| -> Vec<usize> {
        let prompts =
            |events: &Vec<Event>| events.iter().filter(|event| matches!(event, Event::Prompt { .. })).count();
        choices.iter().map(prompts).collect()
    };
    for (received, expected) in
        [(vec![], [1, 1, 1]), (vec![1, 0, 2], [0, 1, 0]), (vec![0, 3], [1, 0, 1]), (vec![1, 1, 1], [0, 0, 0])]
    {
        let (choices, error) = told(says("ab"), &ask, &received).await;
        assert_eq!((prompts(&choices), error), (expected.to_vec(), None), "{received:?}");
        for (index, events) in choices.iter().enumerate() {
            let (_, tokens, end) = gathered(events);
            let had = received.get(index).copied().unwrap_or(0);
            assert_eq!(tokens.len(), 3 - had, "{received:?}");
            let Some(Event::Finished { usage, .. }) = end else { panic!("{events:?}") };
            assert_eq!(usage.completion_tokens, 3, "the usage is that of the whole answer");
            assert!(matches!(events.first(), Some(Event::Prompt { .. })) == (had == 0));
        }
    }
}

proptest! {
    /// What was received came in pieces of any size, and so does what comes now.
    #[test]
    fn the_pieces_do_not_matter(
        text in "[abé😀]{1,12}",
        stops in prop::collection::vec("[abé]{1,3}", 0..3),
        (min_tokens, include_stop, stopped) in (0u32..6, any::<bool>(), any::<bool>()),
        received in 0usize..20,
        sizes in prop::collection::vec(1usize..7, 1..8),
    ) {
        let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
        ids.extend(stopped.then_some(END));
        let end = if stopped { SequenceEnd::StopToken } else { SequenceEnd::Length };
        let request = request(Ask { stop: stops, min_tokens, include_stop, ..Ask::default() });
        let told = |received: usize, sizes: &[usize]| {
            let mut rest = Rest::new(Shape::new(&request, 0), 0, received);
            let (mut events, mut left) = (Vec::new(), &ids[..]);
            for size in sizes.iter().cycle() {
                let (now, later) = left.split_at(left.len().min(*size));
                left = later;
                let outputs =
                    now.iter().map(|id| TokenOutput { token: *id, logprob: None, top: vec![] }).collect();
                let (delta, finished) = rest.tokens(outputs, left.is_empty().then_some(end))?;
                events.extend(delta);
                if let Some(finished) = finished {
                    events.push(finished);
                    return Ok::<_, ApiError>(events);
                }
            }
            unreachable!("the last piece ends it")
        };
        let whole = told(0, &[1]).expect("nothing was received");
        let deltas = whole.len() - 1;
        if received > deltas {
            prop_assert!(told(received, &sizes).is_err());
        } else {
            let had = whole[..received].to_vec();
            let rest = told(received, &sizes).expect("so many there are");
            prop_assert_eq!(gathered(&[had, rest].concat()), gathered(&whole));
        }
    }
}
