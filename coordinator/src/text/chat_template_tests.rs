//! Templates of the common shapes, written for these tests, against what transformers makes of them.

use serde_json::{Map, json};

use super::*;

fn messages(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    let turn =
        |(role, content): &(&str, &str)| ChatMessage { role: role.to_string(), content: content.to_string() };
    turns.iter().map(turn).collect()
}

fn render(template: &str, turns: &[(&str, &str)], prompt: bool) -> Result<String, TextError> {
    ChatTemplate::compile(template, "<s>", "</s>")?.render(&messages(turns), prompt, &Map::new())
}

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

/// Turns must alternate; the system's words go into the first user turn.
const ALTERNATING: &str = "\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim + '\n\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant, not ' ~ message.role) }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ (system if loop.first else '') ~ message.content.strip() ~ ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}";

/// Headers around each turn, a date, tools if there are any.
const HEADERS: &str = "\
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%Y') %}
{%- endif %}
{%- if tools is not none %}
    {{- 'tools: ' + (tools | map('tojson') | join('\n')) + '\n' }}
{%- endif %}
{{- bos_token + date_string[:2] }}
{%- for message in messages[::-1] | reverse %}
    {{- '<|h|>' + message['role'] + '<|/h|>\n\n' + message['content'].split('</think>')[-1].lstrip('\n') + '<|e|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|h|>assistant<|/h|>\n\n' }}
{%- endif %}
";

#[test]
fn chatml() {
    let text =
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(CHATML, &[("user", "Hi")], true), Ok(text.into()));
    let text = "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n";
    assert_eq!(render(CHATML, &[("system", "A"), ("user", "B")], false), Ok(text.into()));
}

#[test]
fn alternating_turns() {
    let turns = [("system", " S "), ("user", " a "), ("assistant", "b"), ("user", "c")];
    let text = "<s>[INST] S\n\na [/INST] b</s>[INST] c [/INST]";
    assert_eq!(render(ALTERNATING, &turns, true), Ok(text.into()));
}

#[test]
fn headers_dates_and_tools() {
    let template = ChatTemplate::compile(HEADERS, "<s>", "</s>").expect("valid");
    let turns = messages(&[("user", "q"), ("assistant", "<think>x</think>\n\ny")]);
    let body = "<s>20<|h|>user<|/h|>\n\nq<|e|><|h|>assistant<|/h|>\n\ny<|e|>";
    assert_eq!(template.render(&turns, false, &Map::new()), Ok(body.into()));
    let extra = json!({"tools": [{"name": "f", "n": 1}], "date_string": "20xx"});
    let with_tools = format!("tools: {{\"name\": \"f\", \"n\": 1}}\n{body}<|h|>assistant<|/h|>\n\n");
    assert_eq!(template.render(&turns, true, extra.as_object().expect("an object")), Ok(with_tools));
}

#[test]
fn the_language_is_jinja2s_as_transformers_sets_it() {
    for (template, expected) in [
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{{ messages | tojson }}", r#"[{"role": "user", "content": "é\""}]"#),
        ("{{ {'b': 1, 'a': [1]} | tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": [\n    1\n  ]\n}"),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", r#"{"a":2,"b":1}"#),
        (
            "{% set ns = namespace(n=0) %}{% for m in [1, 2, 3] %}{% set ns.n = ns.n + m %}{% if m == 2 %}{% break %}\
             {% endif %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}", "13"),
        ("{% macro f(x, y='d') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') }}", "ad"),
        ("{% if tools is not none %}tools{% endif %}{{ nothing }}|{{ nothing is defined }}", "|False"),
        ("{{ messages[0].get('name', 'none') }} {{ messages[0].name is undefined }}", "none True"),
        ("{% for k, v in messages[0].items() %}{{ k }} {% endfor %}", "role content "),
        ("{{ 'abc'.startswith('ab') }} {{ 'a b'.split(' ') | length }} {{ 'x'.upper() }}", "True 2 X"),
        ("{{ messages[0].content is string and messages is sequence }} {{ none }}", "True None"),
        (
            "a {%- generation -%} {{ 'b' }} {%- endgeneration %} {% if add_generation_prompt %}c{% endif %}",
            "ab c",
        ),
        ("{{ '<b>' }}", "<b>"),
    ] {
        assert_eq!(render(template, &[("user", "é\"")], true).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn a_templates_own_refusal_is_what_the_client_reads() {
    let refused = render(ALTERNATING, &[("user", "a"), ("user", "b")], false);
    let words = "roles must alternate user/assistant, not user";
    assert_eq!(refused, Err(TextError::Refused(words.into())));
    let in_macro = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert_eq!(render(in_macro, &[], false), Err(TextError::Refused("no".into())));
}

#[test]
fn a_broken_template_says_where() {
    for (template, part) in [
        ("{% if %}", "line 1"),
        ("\n{{ f( }}", "line 2"),
        ("{{ messages[0].content.nosuch() }}", "nosuch"),
        ("{{ nosuch() }}", "nosuch"),
        ("{% generation", "line 1"),
        ("{{ messages | tojson(nosuch=1) }}", "nosuch"),
    ] {
        match render(template, &[("user", "x")], false) {
            Err(TextError::Template(reason)) => assert!(reason.contains(part), "{template}: {reason}"),
            other => panic!("{template}: {other:?}"),
        }
    }
}

#[test]
fn a_request_cannot_replace_the_messages() {
    let template =
        ChatTemplate::compile("{{ bos_token }}{{ messages[0].content }}{{ x }}", "<s>", "").expect("valid");
    let extra = json!({"messages": [{"content": "other"}], "bos_token": "other", "x": "!"});
    let text = template.render(&messages(&[("user", "mine")]), false, extra.as_object().expect("an object"));
    assert_eq!(text, Ok("<s>mine!".into()));
}
