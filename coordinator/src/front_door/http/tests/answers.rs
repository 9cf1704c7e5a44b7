//! Whole answers: text, log-probabilities, echoes, usage.

use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, answer};
use crate::front_door::fixture::{FakeGenerator, Fixture};

#[tokio::test]
async fn a_completion_tells_text_reason_and_usage() {
    let fixture = Fixture::new(FakeGenerator::default());
    let body = json!({"model": "m", "prompt": "hi", "return_token_ids": true, "temperature": 0});
    let value = answer(&fixture, COMPLETIONS, body).await;
    assert_eq!((&value["object"], &value["model"]), (&json!("text_completion"), &json!("m")));
    assert!(value["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let choice = &value["choices"][0];
    assert_eq!(choice["text"], "hello world");
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["token_ids"].as_array().map(Vec::len), Some(12), "the end token too");
    assert_eq!(choice["prompt_token_ids"], json!([104, 105]));
    assert_eq!(
        value["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[tokio::test]
async fn several_prompts_are_answered_in_their_places() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    for prompt in [json!(["x", "yz"]), json!([[120], [121, 122]])] {
        let value = answer(&fixture, COMPLETIONS, json!({"prompt": prompt})).await;
        let texts: Vec<_> =
            value["choices"].as_array().expect("a list").iter().map(|c| (&c["index"], &c["text"])).collect();
        assert_eq!(texts, [(&json!(0), &json!("ab")), (&json!(1), &json!("ab"))]);
        assert_eq!(
            value["usage"],
            json!({"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0}})
        );
    }
    let asked = fixture.generator.asked.lock().expect("no panic").clone();
    assert_eq!((&asked[0].tokens[..], &asked[3].tokens[..]), (&[120][..], &[121, 122][..]));
    assert_ne!(asked[0].request_id, asked[1].request_id);
}

#[tokio::test]
async fn log_probabilities_are_in_openais_shape() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let value = answer(&fixture, COMPLETIONS, json!({"prompt": "hi", "logprobs": 2, "max_tokens": 2})).await;
    assert_eq!(
        value["choices"][0]["logprobs"],
        json!({"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
            "top_logprobs": [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]})
    );
    let value = answer(&fixture, COMPLETIONS, json!({"prompt": "hi", "logprobs": 0, "max_tokens": 1})).await;
    assert_eq!(
        value["choices"][0]["logprobs"]["top_logprobs"],
        json!([{"a": -0.5}]),
        "the token itself is there"
    );
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 1, "max_tokens": 1});
    let value = answer(&fixture, CHAT, chat).await;
    assert_eq!(
        value["choices"][0]["logprobs"]["content"],
        json!([{"token": "a", "logprob": -0.5, "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}]}])
    );
}

#[tokio::test]
async fn an_echo_scores_the_prompt() {
    let fixture = Fixture::new(FakeGenerator { text: "ab".into(), ..FakeGenerator::default() });
    let body =
        json!({"prompt": "hey", "logprobs": 1, "echo": true, "max_tokens": 0, "return_token_ids": true});
    let value = answer(&fixture, COMPLETIONS, body).await;
    let choice = &value["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hey"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["h", "e", "y"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["top_logprobs"], json!([null, {"e": -0.5}, {"y": -0.5}]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(choice["token_ids"], json!([]), "those of the prompt are in their own place");
    assert_eq!(choice["prompt_token_ids"], json!([104, 101, 121]));
    assert_eq!(value["usage"]["completion_tokens"], 0);
    let body = json!({"prompt": [104, 101], "echo": true, "max_tokens": 1, "logprobs": 0});
    let value = answer(&fixture, COMPLETIONS, body).await;
    assert_eq!(value["choices"][0]["text"], "hea");
    assert_eq!(value["choices"][0]["logprobs"]["tokens"], json!(["h", "e", "a"]));
}
